"""The installed package: what is in the wheel, what importing it loads, and rendering from Python in any folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from prefect_regional_diffusion.sampling_core.job.mask_shapes import MASK_KINDS
from tests.processes import ROOT, environment

PACKAGE = "prefect_regional_diffusion"
FOLDERS = ("sampling_core", "tasks", "flows", "deployments")

SCRIPT = """
from prefect_regional_diffusion import Rectangle, Region, RenderJob, plan, render

left = Region(prompt="a red circle", mask=Rectangle(x=0, y=0, width=0.5, height=1))
job = RenderJob(prompt="a blue background", regions=(left,), steps=2)
print(plan(job).evaluations)
result = render(job)
result.images[0].save("picture.png")
print(type(result.images[0]).__module__, result.images[0].size, result.record["evaluations"])
import sys
import prefect_regional_diffusion.tasks
print(prefect_regional_diffusion.tasks.__file__, "prefect" in sys.modules)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git has: a build leaves folders behind."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in (*FOLDERS, PACKAGE):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*build, "--wheel-dir", out, source], check=True, capture_output=True, env=environment(out))
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, to be found before this checkout."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder in which everything that our folders are called ends whoever imports it."""
    for name in ("tasks.py", "sampling_core.py", "flows/__init__.py", "deployments/__init__.py"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text("raise SystemExit('imported by name of the top level')\n")
    return tmp_path


def run(arguments: list[str], cwd: Path, installed: Path) -> subprocess.CompletedProcess[str]:
    env = environment(cwd / "home") | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_the_wheel_holds_one_package_with_every_file(wheel: Path) -> None:
    """Without the links beside the facade, a wheel builds as well: with one file."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {PACKAGE, f"{wheel.name.split('-')[0]}-{wheel.name.split('-')[1]}.dist-info"}
    tracked = subprocess.run(["git", "ls-files", *FOLDERS], cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = {f"{PACKAGE}/{name}" for name in tracked.stdout.split() if (ROOT / name).is_file()}
    assert len(wanted) > 150
    assert wanted <= set(names)
    assert {name for name in names if name.startswith(f"{PACKAGE}/")} - wanted == {
        f"{PACKAGE}/__init__.py",
        f"{PACKAGE}/py.typed",
    }


def test_importing_the_package_and_the_jobs_models_loads_nothing_heavy() -> None:
    code = f"""
import sys
from {PACKAGE} import BadInput, GridJob, Rectangle, Region, RenderJob
from {PACKAGE}.sampling_core.job.parsing import parse_job
RenderJob(prompt="x", regions=(Region(prompt="y", mask=Rectangle(x=0, y=0, width=1, height=1)),)).model_dump_json()
print([name for name in ("torch", "prefect", "diffusers", "transformers", "PIL", "numpy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_exported_name_is_there() -> None:
    import prefect_regional_diffusion as package

    assert {kind.__name__ for kind in MASK_KINDS.values()} <= set(package.__all__)

    assert dir(package) == sorted(package.__all__)
    for name in package.__all__:
        assert getattr(package, name).__name__
    with pytest.raises(AttributeError, match="no attribute 'rendr'"):
        _ = package.rendr


def test_a_script_renders_beside_modules_of_our_folders_names(hostile: Path, installed: Path) -> None:
    (hostile / "script.py").write_text(SCRIPT)
    done = run(["script.py"], hostile, installed)
    assert done.returncode == 0, done.stderr
    planned, drawn, place = done.stdout.splitlines()
    assert drawn == f"PIL.Image (128, 128) {planned}"
    assert place.startswith(str(installed))
    assert place.endswith(" False"), "without a flow, nothing imports Prefect"
    assert done.stderr.count("\n") <= 3
    assert (hostile / "picture.png").stat().st_size > 0
    assert not (hostile / ".regional").exists()
    assert not (hostile / "renders").exists()


def test_the_command_line_renders_beside_modules_of_our_folders_names(hostile: Path, installed: Path) -> None:
    (hostile / "job.json").write_text(json.dumps({"prompt": "a blue background", "steps": 1}))
    done = run(["-m", f"{PACKAGE}.flows.cli.main", "render", "job.json", "--json"], hostile, installed)
    assert done.returncode == 0, done.stderr
    (picture,) = json.loads(done.stdout)["images"]
    assert (hostile / picture).exists()


def test_the_links_of_this_checkout_are_relative() -> None:
    for name in FOLDERS:
        link = ROOT / PACKAGE / name
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{name}"
