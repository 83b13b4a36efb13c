"""What `make install` installs: exact versions whose hashes pip compares, in line with pyproject.toml."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.processes import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
INSTALL = PROJECT["dependency-groups"]["install"]
NEEDED = {
    "requirements.txt": [*PROJECT["project"]["dependencies"], *INSTALL],
    "requirements-dev.txt": [
        *(*PROJECT["project"]["dependencies"], *INSTALL),
        *PROJECT["project"]["optional-dependencies"]["dev"],
    ],
}


def pins(file: str) -> dict[str, tuple[Requirement, list[str]]]:
    """Requirement and hashes of each package of a lock file."""
    text = (ROOT / file).read_text().replace("\\\n", " ")
    found: dict[str, tuple[Requirement, list[str]]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, *hashes = re.split(r"\s+--hash=", line)
            requirement = Requirement(name)
            found[canonicalize_name(requirement.name)] = requirement, hashes
    return found


@pytest.mark.parametrize("file", NEEDED)
def test_each_package_has_one_version_and_hashes(file: str) -> None:
    for requirement, hashes in pins(file).values():
        (exactly,) = requirement.specifier
        assert exactly.operator == "==", requirement
        assert hashes, requirement
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", value) for value in hashes), requirement


@pytest.mark.parametrize("file", NEEDED)
def test_each_dependency_of_the_project_is_pinned_in_its_range(file: str) -> None:
    """Who changes pyproject.toml has to run `make lock`."""
    pinned = pins(file)
    for line in NEEDED[file]:
        wanted = Requirement(line)
        name = canonicalize_name(wanted.name)
        if name != "torch":  # its build is for people to choose
            (exactly,) = pinned[name][0].specifier
            assert wanted.specifier.contains(exactly.version, prereleases=True), f"{wanted}: {exactly}"
    assert "torch" not in pinned


def test_who_only_runs_it_has_the_versions_that_are_tested() -> None:
    tested = pins("requirements-dev.txt")
    for name, (requirement, hashes) in pins("requirements.txt").items():
        # Markers may differ: what only Windows needs to run may be needed everywhere for tests.
        assert (requirement.specifier, hashes) == (tested[name][0].specifier, tested[name][1])


@pytest.mark.e2e
@pytest.mark.parametrize("honest", [True, False], ids=["the right file", "another file of that version"])
def test_make_install_compares_hashes(tmp_path: Path, *, honest: bool) -> None:
    """`make install` of a small project, from an index that serves one wheel."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    wheel = _wheel(tmp_path, "a_dependency", ["value = 7\n"])
    digest = hashlib.sha256(wheel.read_bytes() if honest else b"other bytes").hexdigest()
    (tmp_path / "requirements-dev.txt").write_text(f"a-dependency==1.0 --hash=sha256:{digest}\n")
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'a-project'\nversion = '1'\n")
    # The environment has setuptools, which the lock file brings otherwise, and torch.
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", ".venv"], cwd=tmp_path, check=True)
    _lend_packages(tmp_path)
    env = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run(["make", "install"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    installed = list(tmp_path.glob(".venv/lib/python*/site-packages/a_dependency/__init__.py"))
    if honest:
        assert done.returncode == 0, done.stderr
        assert installed
    else:
        assert done.returncode != 0
        assert "DO NOT MATCH THE HASHES" in done.stderr
        assert not installed


def _wheel(folder: Path, name: str, code: Iterable[str]) -> Path:
    path = folder / f"{name}-1.0-py3-none-any.whl"
    about = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", "".join(code))
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")
    return path


def _lend_packages(folder: Path) -> None:
    """Let the new environment see the packages of this one."""
    (site,) = folder.glob(".venv/lib/python*/site-packages")
    for old in site.glob("setuptools*"):  # older Pythons put one too old for the project there
        shutil.rmtree(old)
    (site / "lent.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")
