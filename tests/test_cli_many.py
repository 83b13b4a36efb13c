"""Commands about many pictures, and about what is there: plans of grids and patterns, totals, tables, settings."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from prefect_regional_diffusion.flows.cli import grid as cli_grid
from prefect_regional_diffusion.flows.cli import main as cli
from prefect_regional_diffusion.flows.common.errors import IncompleteRenderError
from prefect_regional_diffusion.sampling_core.engine.cache_keys import SegmentKey
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob, cells
from prefect_regional_diffusion.sampling_core.job.parsing import parse_grid, parse_job
from prefect_regional_diffusion.tasks.inputs.job_files import read_job
from prefect_regional_diffusion.tasks.machine.settings import Settings, settings, unknown_variables
from prefect_regional_diffusion.tasks.runtime.batch_plan import plan_batch
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from prefect_regional_diffusion.tasks.runtime.retention import RunRecord
from prefect_regional_diffusion.tasks.storage.keys import RecordKey
from prefect_regional_diffusion.tasks.storage.store import Store
from tests.processes import EXAMPLES, ROOT

GRIDS = ROOT / "examples" / "grids"
MASK = {"x": 0, "y": 0, "width": 0.5, "height": 1}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of `regional ARGUMENTS`."""
    monkeypatch.setattr("sys.argv", ["regional", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_one_job_costs_together_what_it_costs_alone(example: Path) -> None:
    prepared = prepare(read_job(example))
    named = NamedJob(name="one", job=prepared.job)
    cost = plan_batch([named], {"one": prepared}).cost
    alone = prepared.cost
    assert (cost.steps, cost.shared_steps) == (prepared.run.steps, 0)
    assert (cost.evaluations, cost.forwards) == (alone.evaluations, alone.forwards)


def grid_cost(jobs_per_shard: int | None = None, **fields: Any) -> tuple[int | Fraction, ...]:
    grid = parse_grid({"job": {"prompt": "a sea", "steps": 4, "cfg": 1}, "rows": 2, "columns": 2} | fields)
    jobs = cells(grid)
    together = plan_batch(jobs, {one.name: prepare(one.job) for one in jobs}, jobs_per_shard)
    cost = together.cost
    return (together.distinct, together.shards, *cost)


def test_cells_of_a_grid_share_forwards_and_steps() -> None:
    """Four cells of four steps, a row each. distinct, shards, steps, shared, evaluations, forwards, largest,
    control rows, evaluations of the canvas.
    """
    assert grid_cost() == (4, 1, 16, 0, 16, 4, 4, 0, 16)
    assert grid_cost(jobs_per_shard=2) == (4, 2, 16, 0, 16, 8, 2, 0, 16)
    own = [{"row": row, "column": column, "prompt": f"{row}{column}"} for row in range(2) for column in range(2)]
    fork: dict[str, Any] = {"mode": "Sample then Fork", "fork_at_step": 3, "cells": own}
    assert grid_cost(**fork) == (4, 1, 3 + 4, 9, 3 + 4, 3 + 1, 4, 0, 7)
    # The second shard goes on from the state where the first one parted.
    assert grid_cost(jobs_per_shard=2, **fork) == (4, 2, 3 + 4, 3, 3 + 4, 3 + 1 + 1, 2, 0, 7)
    # Two that say nothing are one.
    assert grid_cost(jobs_per_shard=None, **fork | {"cells": own[:2]}) == (3, 1, 3 + 3, 6, 3 + 3, 3 + 1, 3, 0, 6)


def test_a_forward_has_no_more_rows_than_the_machine_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGIONAL_MAX_FORWARD_ROWS", "3")
    settings.cache_clear()
    assert grid_cost() == (4, 1, 16, 0, 16, 8, 3, 0, 16)


def test_jobs_with_other_start_images_share_nothing(workdir: Path) -> None:
    """What a init image becomes is not known before it is encoded; only that another one becomes another latent."""
    Image.new("RGB", (64, 64), "red").save("red.png")
    Image.new("RGB", (64, 64), "blue").save("blue.png")
    common = {"prompt": "a sea", "steps": 4, "denoise": 0.5}
    named = [
        NamedJob(name=name, job=parse_job(common | {"init_image": image}))
        for name, image in (("a", "red.png"), ("b", "blue.png"), ("c", "red.png"))
    ]
    together = plan_batch(named, {one.name: prepare(one.job) for one in named})
    assert (together.distinct, together.cost.steps) == (2, 8)


def test_a_grid_can_be_planned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As it is drawn: tests/test_grid.py has the same numbers from a run."""
    assert run(monkeypatch, "plan", GRIDS / "fork.yaml", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["cells"], plan["distinct"], plan["shards"]) == (4, 4, 1)
    assert (plan["steps"], plan["shared_steps"]) == (4 + 12 * 4, 4 * 3)
    assert (plan["evaluations"], plan["forwards"]) == (2 + 3 * 3 + 4 + 2 + 11 * 4 * 3, 16)
    assert run(monkeypatch, "plan", GRIDS / "seeds.yaml", "--set", "job.steps=2", "--set", "cells.1.prompt=a: b") == 0
    said = capsys.readouterr().out
    assert "seeds.yaml: 2 x 3 cells" in said
    assert "Together: 6 cells; 12 steps" in said


def test_mistakes_of_a_grid_are_told_when_it_is_planned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "plan", GRIDS / "fork.yaml", "--set", "job.model=nowhere") == 2
    err = capsys.readouterr().err
    assert err.startswith("job.model: ")
    assert err.count("\n") == 1


@pytest.fixture
def jobs(workdir: Path) -> Path:
    folder = workdir / "jobs"
    folder.mkdir()
    region = {"prompt": "a red circle", "mask": MASK}
    for name, job in {
        "a": {"prompt": "a sea", "steps": 4},
        "b": {"prompt": "a sea [red]", "steps": 3, "cfg": 1, "width": 512},
        "c": {"prompt": "a sea", "steps": 4},
        "d": {"prompt": "a sea", "steps": 2, "regions": [region]},
    }.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(job))
    return folder


def test_many_jobs_can_be_planned(
    jobs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "plan", "jobs/*.yaml", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    told = [(one["file"], one["name"], one["steps"], one["evaluations"], one["forwards"]) for one in plan["jobs"]]
    assert told == [
        ("jobs/a.yaml", "a", 4, 8, 4),
        ("jobs/b.yaml", "b", 3, 3, 3),
        ("jobs/c.yaml", "c", 4, 8, 4),
        ("jobs/d.yaml", "d", 2, 2 + 3, 2),
    ]
    assert plan["jobs"][1]["warnings"]
    # Three that differ, in four rounds; b is of another size, so it has forwards of its own.
    assert (plan["distinct"], plan["steps"], plan["evaluations"], plan["forwards"]) == (3, 9, 8 + 3 + 5, 4 + 3)
    assert run(monkeypatch, "plan", "jobs/*.yaml", "--set", "steps=5") == 0
    said = capsys.readouterr().out
    assert [line.split()[1:4:2] for line in said.splitlines() if "jobs/" in line and "│" in line] == [
        [f"jobs/{name}.yaml", "5"] for name in "abcd"
    ]
    # Now a and d are of one length: their first step, which is the base's alone, is one.
    assert "Together: 4 jobs, 1 of them equal to another; 14 steps, and 1 that others compute as well" in said
    assert "Warning: jobs/b.yaml: width 512 is far from" in said


def test_windows_count_as_their_share_of_the_canvas(
    jobs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A base of two rows, and from the second step on a region of two on a quarter of the canvas; job a has none."""
    region = {"prompt": "a red circle", "mask": {"x": 0, "y": 0, "width": 0.5, "height": 0.5}, "window": {}}
    job = {"prompt": "a sea", "steps": 3, "width": 256, "height": 256, "regions": [region]}
    (jobs / "d.yaml").write_text(yaml.safe_dump(job))
    assert run(monkeypatch, "plan", "jobs/[ad].yaml", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    told = [(one["evaluations"], one["canvas_evaluations"]) for one in plan["jobs"]]
    assert told == [(8, 8.0), (3 * 2 + 2 * 2, 3 * 2 + 2 * 2 / 4)]
    assert (plan["evaluations"], plan["canvas_evaluations"]) == (18, 15.0)
    assert run(monkeypatch, "plan", "jobs/[ad].yaml") == 0
    said = capsys.readouterr().out
    assert "Of the canvas" in said
    assert "Evaluations (network rows): 18, the work of 15 of the canvas; forwards (network calls): " in said
    grid = {"job": job, "rows": 1, "columns": 2}
    (jobs / "grid.yaml").write_text(yaml.safe_dump(grid))
    assert run(monkeypatch, "plan", "jobs/grid.yaml", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["evaluations"], plan["canvas_evaluations"]) == (20, 14.0)


@pytest.mark.parametrize("command", ["plan", "batch"])
def test_each_mistake_names_its_file(
    command: str, jobs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (jobs / "b.yaml").write_text("promt: a sea\nsteps: 0")
    (jobs / "d.yaml").write_text("prompt: a\nprompt: b")
    assert run(monkeypatch, command, "jobs/*.yaml") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line[:22] for line in err.splitlines()] == [
        "jobs/b.yaml: steps: 0 ",
        "jobs/b.yaml: promt: 'a",
        "jobs/d.yaml is not val",
    ]
    (jobs / "b.yaml").write_text("prompt: a sea\nmodel: nowhere")
    (jobs / "d.yaml").write_text(yaml.safe_dump({"prompt": "a", "regions": [{"prompt": "b", "mask": {"image": "x"}}]}))
    assert run(monkeypatch, command, "jobs/*.yaml") == 2
    assert [line.split(": ")[:2] for line in capsys.readouterr().err.splitlines()] == [
        ["jobs/b.yaml", "model"],
        ["jobs/d.yaml", "regions.0.mask.image"],
    ]
    assert run(monkeypatch, command, "jobs/a*", "--set", "steps=0") == 2
    assert capsys.readouterr().err.startswith("jobs/a.yaml: steps: 0 is not allowed")


DONE: dict[str, Any] = {
    "sheet": "out/[a]/sheet.png",
    "images": {"r0c0": ["out/[a]/x.png"], "r0c1": ["out/[a]/y.png"], "r1c0": ["out/[a]/x.png"]},
    "missing": [],
    "shards": 2,
    "counted": [
        {"drawn": 1, "found": 0, "seconds": {"build masks": 0.5, "sample": 1.5}}
        | {"evaluations": 30, "canvas_evaluations": 12.5, "forwards": 10},
        {"drawn": 0, "found": 1, "seconds": {"build masks": 0.25}}
        | {"evaluations": 0, "canvas_evaluations": 0.0, "forwards": 0},
    ],
}


def drawn(monkeypatch: pytest.MonkeyPatch, done: dict[str, Any] | IncompleteRenderError) -> list[Any]:
    """Replaces the flows by one that has this result; what they were called with."""
    called: list[Any] = []

    def in_context(_: object, start: object) -> dict[str, Any]:
        called.append(start)
        if isinstance(done, IncompleteRenderError):
            raise done
        return done

    monkeypatch.setattr(cli_grid, "in_context", in_context)
    return called


@pytest.mark.parametrize("command", [["grid", GRIDS / "seeds.yaml"], ["batch", "jobs/*.yaml", "--set", "steps=2"]])
def test_what_was_drawn_ends_with_totals(
    command: list[object], jobs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn(monkeypatch, DONE)
    assert run(monkeypatch, *command) == 0
    *paths, said = capsys.readouterr().out.splitlines()
    assert paths == ["out/[a]/x.png", "out/[a]/y.png", "out/[a]/sheet.png"]
    assert said.startswith(
        "1 drawn, 1 found finished, 1 equal to another, 0 missing; "
        "30 evaluations, the work of 12.5 of the canvas, in 10 forwards, 2 shards, "
    )
    assert re.search(r"[0-9.]+ s \(start [0-9.]+, load [0-9.]+, sample [0-9.]+, write [0-9.]+\)$", said)
    assert run(monkeypatch, *command, "--json") == 0
    total = json.loads(capsys.readouterr().out)["totals"]
    assert total.pop("seconds") > 0
    assert total.pop("stages") == {"build masks": 0.75, "sample": 1.5}
    assert total == {
        "jobs": 3,
        "drawn": 1,
        "found": 1,
        "missing": 0,
        "evaluations": 30,
        "canvas_evaluations": 12.5,
        "forwards": 10,
        "shards": 2,
    }


def test_totals_of_other_machines_say_what_is_known(
    jobs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = DONE | {"counted": [], "images": {"a": ["a.png"]}, "missing": ["b"]}
    drawn(monkeypatch, IncompleteRenderError("not drawn: b (because)", there))
    assert run(monkeypatch, "batch", "jobs/*.yaml", "--json") == 1
    *warnings, first, second = capsys.readouterr().err.splitlines()
    assert all(line.startswith("Warning: jobs/") for line in warnings)
    assert first.startswith("1 there, 1 missing, in 2 shards on other machines, ")
    assert second == "not drawn: b (because)"


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == "regional 0.1.0\n"


@pytest.mark.parametrize("command", [["ls"], ["du"], ["prune"], ["prune", "--keep", "none", "--dry-run"]])
@pytest.mark.parametrize("place", ["nowhere", "file"])
def test_a_store_that_does_not_exist_is_no_empty_one(
    command: list[str], place: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("x")
    assert run(monkeypatch, "store", *command, "--store", place) == 2
    out, err = capsys.readouterr()
    assert out == ""
    # A long path is cut in its middle.
    assert err.startswith("store /")
    assert err.endswith(f"{place} does not exist\n")
    assert not Path("nowhere").exists()
    Path("empty").mkdir()
    assert run(monkeypatch, "store", *command, "--store", "empty") == 0


def test_a_run_is_one_line_of_80_columns(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    segments = (SegmentKey(0, "0" * 64),)
    names = ["short", "a name of eighty characters, with blanks and commas, that goes on and on to the end", "[red] x"]
    for i, name in enumerate(names):
        known = RunRecord(
            name=name, job_hash=f"{i}" * 64, steps=1000, segments=segments, begun=1.7e9 + i, finished=i or None
        )
        Store("store").write_json(RecordKey(f"runs/{i:064d}"), known.model_dump(mode="json"))
    settings.cache_clear()
    monkeypatch.setattr("prefect_regional_diffusion.tasks.runtime.retention.RunRecord.states", lambda *_: set())
    monkeypatch.setenv("COLUMNS", "80")
    assert run(monkeypatch, "store", "ls", "--store", "store") == 0
    heading, rule, *lines = capsys.readouterr().out.rstrip().splitlines()
    assert heading.split() == ["Name", "Job", "Begun", "(UTC)", "Done", "Steps", "States", "Size"]
    assert set(rule.strip()) == {"─"}
    assert len(lines) == 3
    assert all(len(line) <= 80 for line in lines)
    assert lines[0].split() == ["short", "0" * 8, "2023-11-14", "22:13", "no", "1000", "0", "0.0", "kB"]
    assert lines[1].split()[-8:] == ["1" * 8, "2023-11-14", "22:13", "yes", "1000", "0", "0.0", "kB"]
    assert lines[1].startswith("a name of eighty")
    assert "…" in lines[1]
    assert lines[2].startswith("[red] x ")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("REGIONAL_MAX_FORWARD_ROWS", "abc", "a whole number"),
        ("REGIONAL_MAX_FORWARD_ROWS", "1.5", "a whole number"),
        ("REGIONAL_MAX_STEPS", "0", "more than 0"),
        ("REGIONAL_KEEP", "some", "'final', 'branch_points' or 'all' or a whole number"),
        ("REGIONAL_CHECKPOINT_SECONDS", "fast", "a number"),
        ("REGIONAL_DTYPE", "int8", "'auto', 'float32', 'float16' or 'bfloat16'"),
    ],
)
def test_bad_settings_say_what_is_allowed(
    name: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    settings.cache_clear()
    assert run(monkeypatch, "plan", EXAMPLES[0]) == 2
    assert capsys.readouterr().err == f"{name}: '{value}' is not allowed; allowed: {allowed}\n"


def test_variables_that_are_no_settings_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that this repository reads for other ends are known."""
    for field in Settings.model_fields:
        monkeypatch.setenv(f"REGIONAL_{field}".upper(), "x")
    for other in ("REGIONAL_UP", "REGIONAL_UP_PART", "REGIONAL_SCREENSHOTS"):
        monkeypatch.setenv(other, "x")
    assert unknown_variables() == []
    for field in Settings.model_fields:
        monkeypatch.delenv(f"REGIONAL_{field}".upper())
    monkeypatch.setenv("REGIONAL_STOER", "here")
    monkeypatch.setenv("REGIONAL_QQQQ", "hunter2")
    assert run(monkeypatch, "plan", EXAMPLES[0], "--json") == 0
    out, err = capsys.readouterr()
    assert err == (
        "Warning: REGIONAL_QQQQ is no setting and changes nothing\n"
        "Warning: REGIONAL_STOER is no setting and changes nothing; did you mean REGIONAL_STORE?\n"
    )
    assert json.loads(out)["steps"]
