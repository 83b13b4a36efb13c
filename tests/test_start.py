"""What a process imports: Prefect where there is a server, and the model libraries where a network is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefect_regional_diffusion.flows.cli.calling import server_for
from prefect_regional_diffusion.flows.server.configured import may_be_configured
from tests.processes import environment

PACKAGE = "prefect_regional_diffusion"
JOB = {"prompt": "a blue background", "width": 64, "height": 64, "steps": 1}
GRID = {"job": JOB, "rows": 1, "columns": 2}

COMMAND = f"""
import sys
from {PACKAGE}.flows.cli.main import main
try:
    main()
finally:
    print(*(name for name in ("torch", "prefect", "diffusers", "transformers") if name in sys.modules), file=sys.stderr)
"""
"""The command `regional`; its last line on stderr is which of these libraries it has imported."""


def imported(folder: Path, *arguments: str, code: str = COMMAND) -> list[str]:
    """What a process of its own imports: this one has everything already."""
    command = [sys.executable, "-c", code, *arguments]
    env = environment(folder / "home") | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 2), done.stderr
    return done.stderr.splitlines()[-1].split()


def written(folder: Path, name: str, content: dict[str, Any]) -> str:
    (folder / name).write_text(json.dumps(content))
    return name


def test_a_refusal_imports_none_of_the_libraries(tmp_path: Path) -> None:
    job = written(tmp_path, "job.json", JOB | {"sampler": "nope"})
    for command in ("plan", "render"):
        assert imported(tmp_path, command, job) == []


def test_a_plan_imports_torch_alone(tmp_path: Path) -> None:
    assert imported(tmp_path, "plan", written(tmp_path, "job.json", JOB)) == ["torch"]
    assert imported(tmp_path, "plan", written(tmp_path, "grid.json", GRID)) == ["torch"]


FACADE = f"""
import json, sys
from {PACKAGE} import RenderJob, render
render(RenderJob.model_validate_json(sys.argv[1]))
print(*(name for name in ("prefect",) if name in sys.modules), file=sys.stderr)
"""


def test_without_a_server_nothing_imports_prefect(tmp_path: Path) -> None:
    assert "prefect" not in imported(tmp_path, "render", written(tmp_path, "job.json", JOB))
    assert "prefect" not in imported(tmp_path, "grid", written(tmp_path, "grid.json", GRID))
    assert "prefect" not in imported(tmp_path, "batch", "job*.json")
    assert imported(tmp_path, json.dumps(JOB), code=FACADE) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("home/profiles.toml", 'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "http://127.0.0.1:1/api"\n'),
        ("prefect.toml", '[api]\nurl = "http://127.0.0.1:1/api"\n'),
        ("pyproject.toml", '[tool.prefect.api]\nurl = "http://127.0.0.1:1/api"\n'),
        (".env", "prefect_api_url=http://127.0.0.1:1/api\n"),
    ],
)
def test_wherever_prefect_reads_its_server_from_it_is_asked(
    name: str, content: str, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    for variable in ("PREFECT_API_URL", "PREFECT_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(workdir / "home"))
    (workdir / "home").mkdir()
    assert not may_be_configured()
    assert server_for(as_flow_run=False) is None
    (workdir / name).write_text(content)
    assert may_be_configured()
    refresh_global_settings_context()
    try:
        assert get_current_settings().api.url == "http://127.0.0.1:1/api", "what the test says of Prefect is true"
        assert server_for(as_flow_run=False) is not None
    finally:
        (workdir / name).unlink()
        refresh_global_settings_context()


@pytest.mark.parametrize("name", ["PREFECT_API_URL", "PREFECT_PROFILE", "prefect_api_url"])
def test_a_variable_is_enough(name: str, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(workdir))
    (workdir / "pyproject.toml").write_text('[project]\nname = "prefect-something"\n')
    (workdir / "profiles.toml").write_text('active = "mine"\n[profiles.mine]\nPREFECT_LOGGING_LEVEL = "INFO"\n')
    assert not may_be_configured()
    monkeypatch.setenv(name, "x")
    assert may_be_configured()


def test_a_file_that_cannot_be_read_is_for_prefect_to_tell(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(workdir))
    (workdir / "pyproject.toml").write_text("[")
    assert may_be_configured()
