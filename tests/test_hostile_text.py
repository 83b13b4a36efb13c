"""Text that somebody else wrote, in errors, logs, tables and artifacts: it steers no terminal, fakes no line, fetches
nothing, and says no key. Whatever it says, people read one line of it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
import threading
import time
import unicodedata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from prefect_regional_diffusion.flows.cli import main as cli
from prefect_regional_diffusion.flows.cli import submit
from prefect_regional_diffusion.flows.common.run_names import named_after
from prefect_regional_diffusion.sampling_core.errors import BadInput, BadJob, StoreError
from prefect_regional_diffusion.sampling_core.job.grid_job import NamedJob
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.quiet import quiet
from prefect_regional_diffusion.sampling_core.text.plain_text import (
    one_line,
    plain,
    plain_lines,
    plain_path,
    plain_value,
)
from prefect_regional_diffusion.tasks.inputs.file_names import portable_job
from prefect_regional_diffusion.tasks.inputs.job_data import JobFileError
from prefect_regional_diffusion.tasks.machine.logs import plain_logger
from prefect_regional_diffusion.tasks.merge import merge
from prefect_regional_diffusion.tasks.publish import Record, publish, versions
from prefect_regional_diffusion.tasks.storage.keys import RecordKey
from prefect_regional_diffusion.tasks.storage.store import Store
from tests.processes import environment, post, regional
from tests.terminal import Terminal

MOST = 1600
"""Characters of an error's line: a field of 200, a value of 80, and what is allowed, at most 1200."""

EVIL = "[/x] \x1b]0;EVIL\x07\x1b[2J\x9b31m\u202eevil\u2066\u200b\u2028\r\n12:00:00 | INFO | all is well `"
"""Markup, a window's title, a cleared screen, writing turned around, a second line."""

LETTERS = "a[]/:`*_<>&|!()@.#'\" \\\r\n\t\x00\x07\x08\x1b\x1c\x7f\x85\x9b\xad\u200b\u200e\u2028\u2029\u202e\u2066\ufeff"
HOSTILE = st.text(st.sampled_from(LETTERS + "\ud800é漢😀"), max_size=60) | st.text(max_size=60)
VALUES = st.recursive(
    HOSTILE | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(HOSTILE, inner)
)


def unseen(text: str) -> list[str]:
    """Characters that do something else than to be read; joiners have their own test."""
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return [letter for letter in text if unicodedata.category(letter) in kinds and letter not in "\u200c\u200d"]


def assert_one_line(text: str, most: int = MOST) -> None:
    assert unseen(text) == []
    assert len(text.splitlines()) <= 1
    assert len(text) <= most


@given(field=HOSTILE, value=VALUES, allowed=HOSTILE)
@example(field="x" * 100_000, value="y" * 100_000, allowed="z" * 100_000)
@example(field=EVIL, value={EVIL: [EVIL]}, allowed=EVIL)
@example(field="steps", value=10**5000, allowed="")
def test_an_error_is_one_line(field: str, value: object, allowed: str) -> None:
    error = BadInput(field, value, allowed)
    for told in (error, BadJob([error]), JobFileError(field, allowed), StoreError(field, field, allowed)):
        assert_one_line(str(told))
    # What was meant stays there for programs.
    assert (error.field, error.value, error.allowed) == (field, value, allowed)


@given(text=HOSTILE)
@example(text=EVIL)
def test_text_path_and_traceback(text: str) -> None:
    assert_one_line(one_line(text))
    assert_one_line(plain(text))
    assert_one_line(plain_path(text))
    first, *others = plain_lines(text + text).split("\n")
    assert unseen(first + "".join(others)) == []
    assert all(line.startswith("  ") for line in others)


@pytest.mark.parametrize(
    "text",
    [
        "a [striped] circle, [/b] and :smile: 100 %",
        "Grüße aus Köln, œuvre, naïve, 'quotes' \"and\" «these»",
        "漢字 ひらがな 한국어 العربية עברית हिन्दी",
        "😀 👍🏽 👨\u200d👩\u200d👧 🏳️\u200d🌈 ❤️",
        "نمی\u200cدان क्\u200dष",  # noqa: RUF001 - letters that need joiners
        "C:\\pictures\\a.png",
        "me@example.org says 3:4",
    ],
)
def test_what_people_write_is_shown_as_they_wrote_it(text: str) -> None:
    assert one_line(text) == plain(text) == plain_path(text) == text


def test_what_is_not_seen_is_spelled() -> None:
    assert plain("a\x1bb\x9bc\u202ed\u200be\u2028f\ud800") == r"a\x1bb\x9bc\u202ed\u200be\u2028f\ud800"
    assert plain("two\r\n lines\tand\u3000blanks ") == "two lines and blanks"
    # A field's name is one word, and a line end in it is no blank.
    assert str(BadInput("a\nb", 1, "c")).startswith(r"a\nb: 1 is not")
    # A joiner that joins nothing could hide in a name.
    assert plain("ad\u200dmin \u200d漢") == r"ad\u200dmin \u200d漢"
    assert plain_value("x" * 500) == plain_value("x" * 5000)


# Markdown. Rendered as Prefect's UI does it, with HTML, as GitHub's.
GITHUB = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
PLAIN_TOKENS = {"text", "text_special", "code_inline", "strong_open", "strong_close", "softbreak"}
PIECES = [*"`|\\![]()<>&*_~#:/@.-=\n\r\t \x0b\x85\u2028a", "http://", "www.", "![", "](", "<img src=", "```", "\n\n"]
MARKDOWN = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
PIXEL = "![x](https://evil.example/track.png)"
TRACKERS = (
    f"`{PIXEL}",
    f"``{PIXEL}``",
    f"\n\n{PIXEL}",
    "\n\n<img src=//evil.example/x>",
    f"\\`{PIXEL}",
    f"a\u2028\n{PIXEL}",
)


def assert_text_alone(markdown: str, rows: int) -> None:
    """No link, picture, HTML or block but those that are meant: paragraphs, and one table with so many rows."""
    blocks = GITHUB.parse(markdown)
    kinds = {"paragraph", "table", "thead", "tbody", "tr", "th", "td"}
    assert {block.type for block in blocks} <= {f"{kind}_{end}" for kind in kinds for end in ("open", "close")} | {
        "inline"
    }
    inline = [part.type for block in blocks for part in block.children or []]
    assert set(inline) <= PLAIN_TOKENS
    assert [block.type for block in blocks].count("tr_open") == rows


class Artifacts:
    """What would be shown in Prefect's UI, in the place of a server."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
        self.markdown: list[str] = []
        for module in modules:
            monkeypatch.setattr(f"{module}.in_flow_run", lambda: True)
            monkeypatch.setattr(f"{module}.create_markdown", self.create)
            monkeypatch.setattr(f"{module}.create_image", self.create_image)

    async def create(self, markdown: str, key: str, description: str) -> None:
        self.markdown += [markdown, description]

    async def create_image(self, image_url: str, key: str, description: str) -> None:
        assert image_url.startswith("data:image/")
        self.markdown.append(description)


def record(text: str) -> Record:
    shape = {"x": 0, "y": 0, "width": 0.5, "height": 1}
    named = {"name": text[:80] or "r", "prompt": text, "mask": shape}
    job = parse_job({"prompt": text, "negative_prompt": text, "regions": [named]})
    return Record(
        job=portable_job(job),
        files={},
        job_hash="0" * 64,
        model_fingerprint="0" * 64,
        latents="latents",
        store=text,
        images=[f"{text}/1.png", f"renders/{text}.png"],
        steps_computed=1,
        steps_restored=0,
        evaluations=1,
        canvas_evaluations=1.0,
        forwards=1,
        seconds={},
        devices=[{"first": 1, "last": 1, "device": text[:200]}],  # pyright: ignore[reportArgumentType]
        numerics={},
        versions=versions(),
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=MARKDOWN)
@example(text=TRACKERS[0])
@example(text=TRACKERS[1])
@example(text=TRACKERS[2])
@example(text=TRACKERS[3])
@example(text=TRACKERS[4])
@example(text=TRACKERS[5])
@example(text=PIXEL * 1000)
def test_a_summary_fetches_nothing(text: str, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        shown = Artifacts(monkeypatch, "prefect_regional_diffusion.tasks.publish")
        asyncio.run(publish.fn(record(text), [], str(tmp_path), "render"))
    summary, title = shown.markdown
    assert_text_alone(summary, rows=3)
    assert_text_alone(title, rows=0)
    assert len(summary) < 20_000


@pytest.mark.parametrize("text", [TRACKERS[0], TRACKERS[2], TRACKERS[3]], ids=range(3))
def test_a_table_of_cells_fetches_nothing(text: str, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is real: whoever starts a run may name any below the worker's own."""
    shown = Artifacts(monkeypatch, "prefect_regional_diffusion.tasks.merge")
    jobs = [NamedJob(name=text[:80], job=parse_job({"prompt": text, "width": 64, "height": 64}))]
    asyncio.run(merge.fn(jobs, {text[:80]: "0" * 64}, 1, "store", "out/" + text.replace("//", "/")))
    for markdown in shown.markdown:
        assert_text_alone(markdown, rows=2 if "prompt" in markdown else 0)


@given(name=HOSTILE)
@example(name="x" * 1000)
def test_a_run_is_called_something_that_can_be_read(name: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(
            "prefect_regional_diffusion.flows.common.run_names.flow_run", SimpleNamespace(parameters={"name": name})
        )
        assert_one_line(named_after("render")(), most=90)


# The command line.
def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of `regional ARGUMENTS`."""
    monkeypatch.setattr("sys.argv", ["regional", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


@pytest.mark.parametrize("key", [EVIL, "k" * 100_000, "\ud800\x1b[2J"], ids=["evil", "long", "half"])
@pytest.mark.parametrize(
    "data",
    [
        lambda key: {key: 1},
        lambda key: {"prompt": "x", "regions": [{"prompt": "x", "mask": {key: key}}]},
        lambda key: {"prompt": "x", "sampler": key},
        lambda key: {"prompt": "x", "model": key},
        lambda key: {"prompt": "x", "regions": [{"prompt": "x", "mask": {"image": key}}]},
        lambda key: {"prompt": "x", "init_image": key},
        lambda key: [key],
    ],
    ids=["key", "shape", "value", "model", "image", "start", "list"],
)
def test_mistakes_in_a_job_are_a_line_each(
    data: Any, key: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("job.json").write_text(json.dumps(data(key)))
    assert run(monkeypatch, "render", "job.json") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert 1 <= len(err.splitlines()) <= 2
    assert err.count("\n") == len(err.splitlines())
    for line in err.splitlines():
        assert_one_line(line)


@pytest.mark.parametrize("override", [f"{EVIL}=1", f"regions.{EVIL}.prompt=1", f"steps={EVIL}", EVIL, "k" * 100_000])
def test_overrides_are_repeated_plainly(
    override: str, workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("job.yaml").write_text("prompt: x\nregions: [{prompt: x, mask: {x: 0, y: 0, width: 1, height: 1}}]\n")
    assert run(monkeypatch, "plan", "job.yaml", "--set", override) == 2
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert_one_line(err.rstrip("\n"))


def test_a_hundred_thousand_mistakes_are_fifty_lines(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("job.json").write_text(json.dumps({f"k{i}": 1 for i in range(30_000)}))
    assert run(monkeypatch, "plan", "job.json") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 51
    assert lines[-1] == "and more mistakes"


def test_a_prompt_of_one_endless_word_is_warned_of_shortly(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("job.json").write_text(json.dumps({"prompt": "(" + "x" * 9_000 + ":1.5)"}))
    assert run(monkeypatch, "plan", "job.json", "--json") == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert len(warnings) == 3
    assert max(map(len, warnings)) < 300


def planted(store: Path, **facts: Any) -> None:
    """A run's record, as somebody who can write to the store left it."""
    known = {"name": "n", "job_hash": "0" * 64, "steps": 1, "segments": [[0, "0" * 64]], "begun": 1.0, "finished": None}
    (store / "runs").mkdir(parents=True, exist_ok=True)
    number = len(list((store / "runs").iterdir()))
    (store / "runs" / f"{number:064x}.json").write_text(json.dumps(known | facts))


def test_a_store_lists_what_was_planted_as_text(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted(workdir / "store", name=EVIL)
    planted(workdir / "store", name=":smile: [b]x[/b]")
    planted(workdir / "store", name="plain", job_hash="[/x]\x1b[2J")
    monkeypatch.setenv("COLUMNS", "300")
    assert run(monkeypatch, "store", "ls", "--store", "store") == 0
    out, _ = capsys.readouterr()
    assert unseen(out.replace("\n", "")) == []
    assert r"[/x] \x1b]0;EVIL\x07" in out
    assert ":smile: [b]x[/b]" in out


def test_a_finished_picture_s_path_can_be_copied(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder whose name is markup to rich: the path is printed as it is, and lies there."""
    Path("job.yaml").write_text("prompt: a blue background\nsteps: 1\nwidth: 64\nheight: 64\n")
    out = workdir / "[x]" / ":smile: é漢 [bold]"
    assert run(monkeypatch, "render", "job.yaml", "--out", out) == 0
    first, _ = capsys.readouterr().out.splitlines()
    assert Path(first).is_file()
    assert Path(first).parent == out


def test_watching_a_run_prints_its_tasks_and_messages_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever can start a run names its model, which is in its tasks' names."""
    ended = {"is_final": lambda: True, "is_completed": lambda: True, "is_scheduled": lambda: False}
    state = SimpleNamespace(name=EVIL, message=EVIL * 100, **ended)
    task = SimpleNamespace(start_time=1, name=EVIL)

    async def read_flow_run(_: object) -> object:
        return SimpleNamespace(state=state)

    async def read_task_runs(**_: object) -> list[object]:
        return [task]

    client: Any = SimpleNamespace(read_flow_run=read_flow_run, read_task_runs=read_task_runs)
    run_: Any = SimpleNamespace(id="00000000-0000-0000-0000-000000000000")
    assert asyncio.run(submit._watched(client, run_))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert_one_line(line, most=1100)


def test_a_fault_of_the_program_is_told_plainly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise RuntimeError(EVIL)

    monkeypatch.setattr(cli, "app", fail)
    assert run(monkeypatch) == 1
    _, err = capsys.readouterr()
    assert unseen(err.replace("\n", "")) == []
    assert [line for line in err.splitlines() if not line.startswith("  ")] == ["Traceback (most recent call last):"]


@pytest.mark.e2e
def test_in_a_terminal_nothing_is_steered(tmp_path: Path) -> None:
    """Real commands on a real pseudo-terminal: beside rich's own colours, no control character comes out of it."""
    planted(tmp_path / "store", name=EVIL, job_hash="[/x]\x1b[2J\x1b]")
    named = tmp_path / "[x]\x1b]0;EVIL\x07.yaml"
    named.write_text(json.dumps({"prompt": f"a blue background {EVIL}" * 5}))
    (tmp_path / "bad.json").write_text(json.dumps({EVIL: 1}))
    env = environment(tmp_path)
    for arguments, code in (
        (["store", "ls", "--store", "store"], 0),
        (["plan", named.name], 0),
        (["plan", "*.yaml"], 2),  # such a name is no name of a job file, and is repeated
        (["plan", "bad.json"], 2),
        ([EVIL.replace("\x00", "")], 2),
    ):
        terminal = Terminal(regional(*arguments), tmp_path, env, f"text-{tmp_path.name}")
        try:
            assert terminal.wait(120) == code, terminal.text
        finally:
            terminal.close()
        shown = re.sub("\x1b\\[[0-9;]*m|\r\n", "", terminal.shown.decode())
        assert unseen(shown) == [], arguments


# Logs.
def test_a_log_line_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    plain_logger("tasks.somewhere").warning("%s does not answer (%s)", EVIL, EVIL * 100)
    (line,) = caplog.messages
    assert_one_line(line, most=600)


def test_the_name_of_a_store_fakes_no_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Names of objects have exact forms (tests/test_hostile_store.py); the folder that they are in has not."""
    store, key = tmp_path / "x\n12:00:00 | INFO | all is well\x1b[2J", RecordKey(f"runs/{'0' * 64}")
    (store / "runs").mkdir(parents=True)
    (store / key.object_name).write_text("{")
    assert Store(str(store)).read_json(key) is None
    (line,) = caplog.messages
    assert_one_line(line, most=600)


@pytest.mark.e2e
def test_prefect_s_own_lines_are_plain(env: dict[str, str], server: str, tmp_path: Path) -> None:
    """Prefect says itself what is wrong with parameters, and logs every failure with its traceback."""
    code = f"""
import asyncio
from prefect_regional_diffusion.flows.render import render
try:
    asyncio.run(render(job={{"prompt": "x", {EVIL!r}: 1}}, name="faked"))
except Exception: pass
try:
    asyncio.run(render(job={{"prompt": "x", "model": {EVIL!r}}}, name={EVIL!r}))
except Exception: pass
"""
    talkative = env | {"PREFECT_LOGGING_LEVEL": "INFO", "PREFECT_LOGGING_COLORS": "false"}
    # Not forked: Prefect sets up its logs when it is imported.
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=talkative, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "BadInput" in done.stderr
    assert unseen(done.stderr.replace("\n", "")) == []
    assert not [line for line in done.stderr.splitlines() if line.startswith("12:00:00 | INFO")]
    time.sleep(3)  # logs reach the server in batches
    logs = [log["message"] for log in post(server, "logs/filter", {"limit": 200})]
    assert any("BadInput" in log for log in logs)
    assert unseen("".join(logs).replace("\n", "")) == []


# Prompts.
def test_another_thread_that_is_done_does_not_make_the_libraries_talk(caplog: pytest.LogCaptureFixture) -> None:
    """Their verbosity is the process': it used to come back when the first of two threads was done."""
    text_encoder = open_folder("embedded").load_text_encoder(Placement())
    libraries = [logging.getLogger(name) for name in ("transformers", "diffusers")]
    for library in libraries:
        library.setLevel(logging.WARNING)
        library.addHandler(caplog.handler)
    entered, leave = threading.Event(), threading.Event()

    def load_another() -> None:
        with quiet():
            entered.set()
            leave.wait(60)

    other = threading.Thread(target=load_another)
    other.start()
    entered.wait(60)

    try:
        leave.set()
        other.join()
        assert len(text_encoder.encode("SECRET " * 60)["prompt_embeds"]) == 1
        assert [library.level for library in libraries] == [logging.WARNING] * 2
    finally:
        for library in libraries:
            library.removeHandler(caplog.handler)
    assert caplog.records == []


@pytest.mark.e2e
@pytest.mark.parametrize("way", [[], ["--flow"]], ids=["plain", "flow"])
def test_a_long_prompt_does_not_reach_the_output(way: list[str], tmp_path: Path) -> None:
    """But the warning that it is long does, with a few words of it."""
    prompt = "a blue background " + "red " * 30 + "TOPSECRET " * 30
    job = {"prompt": prompt, "steps": 1, "width": 64, "height": 64}
    (tmp_path / "job.json").write_text(json.dumps(job))
    env = environment(tmp_path) | {"TRANSFORMERS_VERBOSITY": "info", "DIFFUSERS_VERBOSITY": "info"}
    done = subprocess.run(
        regional("render", "job.json", *way), cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Warning: prompt: " in done.stderr
    assert "ignores the rest" in done.stderr
    assert "TOPSECRET" not in done.stdout + done.stderr
    assert "truncated" not in done.stderr
