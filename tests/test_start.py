"""What a process imports: Prefect where there is a server, and the model libraries where a network is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_regional_diffusion.flows.cli.calling import server_for
from prefect_regional_diffusion.flows.server.configured import may_be_configured
from tests.processes import environment

PACKAGE = "prefect_regional_diffusion"
JOB = {"prompt": "a blue background", "width": 64, "height": 64, "steps": 1}
GRID = {"job": JOB, "rows": 1, "columns": 2}

COMMANDS = f"""
import json, sys
from {PACKAGE}.flows.cli.main import main
for command in json.loads(sys.argv[1]):
    sys.argv[1:] = command
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code
print(code, *(name for name in ("torch", "prefect", "diffusers", "transformers") if name in sys.modules))
"""
FACADE = f"""
import sys
from {PACKAGE} import RenderJob, render
render(RenderJob.model_validate_json(open("job.json").read()), store=".regional/store")
print("imported", *(name for name in ("prefect", "diffusers", "transformers") if name in sys.modules))
"""


def said(folder: Path, code: str, *arguments: str) -> list[str]:
    """The words on the last line of a process of its own: this one has imported everything already."""
    env = environment(folder / "home") | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


def after(folder: Path, *commands: list[str]) -> list[str]:
    """The last exit code of commands `regional` in one process, and which libraries they have imported."""
    return said(folder, COMMANDS, json.dumps(commands))


@pytest.fixture
def jobs(workdir: Path) -> Path:
    """A folder with a job, a grid, and a job with a mistake."""
    for name, content in {"job": JOB, "grid": GRID, "mistake": JOB | {"sampler": "nope"}}.items():
        (workdir / f"{name}.json").write_text(json.dumps(content))
    return workdir


def test_a_refusal_imports_none_of_the_libraries(jobs: Path) -> None:
    assert after(jobs, ["plan", "mistake.json"], ["render", "mistake.json"]) == ["2"]


def test_a_plan_imports_torch_alone(jobs: Path) -> None:
    assert after(jobs, ["plan", "job.json"], ["plan", "grid.json"]) == ["0", "torch"]


def test_without_a_server_prefect_is_not_imported_and_once_all_is_drawn_nor_is_a_model(jobs: Path) -> None:
    drawing = (["render", "job.json"], ["batch", "jo*.json"], ["grid", "grid.json"])
    assert after(jobs, *drawing) == ["0", "torch", "diffusers", "transformers"]
    assert after(jobs, *drawing) == ["0", "torch"]
    assert said(jobs, FACADE) == ["imported"]


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
