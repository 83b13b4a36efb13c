"""Text of job files: YAML 1.2, keys once, whatever is no job file, what is inside a picture, and `--set`."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from prefect_regional_diffusion.sampling_core.errors import BadBatch, RegionalError
from prefect_regional_diffusion.sampling_core.job.comfyui_node import RegionalSampler
from prefect_regional_diffusion.sampling_core.job.grid_job import GridJob
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.job.render_job import RenderJob
from prefect_regional_diffusion.tasks.inputs.job_data import read_data
from prefect_regional_diffusion.tasks.inputs.job_files import read_any, read_grid, read_job, read_job_files, read_jobs
from prefect_regional_diffusion.tasks.inputs.overrides import set_field
from prefect_regional_diffusion.tasks.inputs.safe_yaml import read_json, read_yaml
from tests.bombs import BOMBS

JOB: dict[str, Any] = {
    "prompt": "a blue background",
    "regions": [{"prompt": "a red circle", "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1}}] * 2,
}
GRID: dict[str, Any] = {"job": {"prompt": "a blue background"}, "rows": 2, "columns": 3}


def refused(call: Any, *arguments: Any) -> RegionalError:
    with pytest.raises(RegionalError) as error:
        call(*arguments)
    assert "\n" not in str(error.value)
    return error.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("017", 17),
        ("-017", -17),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b11", "0b11"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("1_000", "1_000"),
        ("1e3", 1000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("+12", 12),
        ("-.inf", -float("inf")),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01 10:00:00", "2024-01-01 10:00:00"),
        *((word, word) for word in ("yes", "no", "on", "off", "y", "n", "Yes", "NO", "=", "<<", "1girl")),
        *((word, True) for word in ("true", "True", "TRUE")),
        ("false", False),
        *((word, None) for word in ("~", "null", "NULL", "")),
        ("'017'", "017"),
        ("!!str 12", "12"),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = read_yaml(f"x: {text}", 1000)["x"]
    assert (type(found), found) == (type(value), value)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_what_is_written_as_json_reads_the_same_as_yaml(value: Any) -> None:
    text = json.dumps({"x": value})
    assert read_yaml(text, 10**6) == read_json(text)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("prompt: a\nsteps: 3\nprompt: b", "line 3: the key 'prompt' is there twice, first in line 1"),
        ("prompt: a\nregions:\n  - {prompt: b, prompt: c}", "line 3: the key 'prompt' is there twice, first in line 3"),
        ("prompt: a\n'prompt': b", "line 2: the key 'prompt' is there twice, first in line 1"),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  <<: *a", "line 4: the key '<<' is there twice, first in line 3"),
        ("1: a", "line 1: the key '1' is no text"),
        ("? [a]\n: b", "line 1: the key of several parts is no text"),
    ],
)
def test_keys_are_text_and_there_once(text: str, line: str, workdir: Path) -> None:
    Path("job.yaml").write_text(text)
    assert str(refused(read_job, Path("job.yaml"))).startswith(f"job.yaml is not valid YAML ({line}")


def test_a_key_that_is_merged_may_be_there_already() -> None:
    assert read_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {x: 4, <<: *a}", 1000)["c"] == {"x": 4, "y": 2}


def test_keys_of_json_are_there_once(workdir: Path) -> None:
    Path("job.json").write_text('{"prompt": "a", "regions": [{"prompt": "b", "prompt": "c"}]}')
    assert str(refused(read_job, Path("job.json"))) == ("job.json is not valid JSON (the key 'prompt' is there twice)")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("steps: 1:30", "steps: '1:30' is not allowed; allowed: a whole number"),
        ("cfg: yes", "cfg: 'yes' is not allowed; allowed: a number"),
        ("cfg: true", "cfg: True is not allowed; allowed: a number"),
        ("cfg: .inf", "cfg: inf is not allowed; allowed: a"),
        ("seed: 2024-01-01", "seed: '2024-01-01' is not allowed; allowed: a whole number"),
    ],
)
def test_values_that_yaml_1_1_would_have_made_something_else_of(text: str, line: str, workdir: Path) -> None:
    Path("job.yaml").write_text(f"prompt: no\n{text}")
    assert str(refused(read_job, Path("job.yaml"))).startswith(line)
    Path("job.yaml").write_text("prompt: no\nsteps: 017")
    assert (read_job(Path("job.yaml")).prompt, read_job(Path("job.yaml")).steps) == ("no", 17)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"# nothing yet\n", "says nothing"),
        (b"a blue background", "is plain text and no mapping of fields"),
        (b"- prompt: a", "is a list and no mapping of fields"),
        (b"42", "is a single value and no mapping of fields"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "is no text in UTF-8"),
        ("prompt: é".encode("utf-16"), "is no text in UTF-8"),
        (b"PK\x03\x04\0\0\0\0", "is no text in UTF-8"),
        (b'{"sheet": "x/sheet.png", "images": {}, "missing": []}', "is the table of a grid's or a batch's pictures"),
        (BOMBS["png"], "is a damaged picture"),
        (BOMBS["png_profile"], "is a"),
        (b"\x89PNG\r\n\x1a\n", "is a damaged picture"),
        *((BOMBS[name], "is no text in UTF-8") for name in ("gif", "bmp", "webp", "jpeg", "tiff")),
    ],
    ids=range(18),
)
def test_what_is_no_job_file_says_what_it_is(content: bytes, says: str, workdir: Path) -> None:
    Path("job.yaml").write_bytes(content)
    for read in (read_job, read_grid, read_any):
        assert str(refused(read, Path("job.yaml"))).startswith(f"job.yaml {says}")


def test_places_that_are_no_file_say_what_they_are(workdir: Path) -> None:
    """A pipe that nobody writes to is not opened: that would wait for ever."""
    Path("folder").mkdir()
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        assert str(refused(read_job, Path("socket"))).startswith("socket is a socket, and no job file")
    assert str(refused(read_job, Path("folder"))).startswith("folder is a folder, and no job file: regional batch")
    assert str(refused(read_job, Path("pipe"))).startswith("pipe is a pipe, and no job file")
    assert str(refused(read_job, Path("none.yaml"))) == f"none.yaml does not exist in {workdir}"
    assert str(refused(read_job, Path("https://example.org/job.yaml"))).startswith(
        "https://example.org/job.yaml is a U"
    )
    assert str(refused(read_job, Path("a\0b"))).count("cannot be read")


def test_what_a_shell_hands_over_is_read(workdir: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"prompt: a sea")
    os.close(writing)
    assert read_job(Path(f"/dev/fd/{reading}")).prompt == "a sea"
    os.close(reading)


def test_a_byte_order_mark_is_no_part_of_a_job(workdir: Path) -> None:
    for name, text in (("job.yaml", "prompt: a sea"), ("job.json", '{"prompt": "a sea"}')):
        Path(name).write_text(text, encoding="utf-8-sig")
        assert read_job(Path(name)).prompt == "a sea"


def test_grids_and_jobs_say_which_command_takes_them(workdir: Path) -> None:
    Path("job.yaml").write_text(yaml.safe_dump(JOB))
    Path("grid.yaml").write_text(yaml.safe_dump(GRID))
    Path("half.yaml").write_text(yaml.safe_dump({"rows": 2, "columns": 2}))
    assert str(refused(read_job, Path("grid.yaml"))) == "grid.yaml is a grid, which regional grid draws"
    assert str(refused(read_grid, Path("job.yaml"))) == (
        "job.yaml is a job, which regional render draws, and no grid (job, rows, columns, cells)"
    )
    assert str(refused(read_grid, Path("half.yaml"))) == (
        "job: None is not allowed; allowed: a value (this field is required)"
    )
    assert isinstance(read_any(Path("job.yaml")), RenderJob)
    assert isinstance(read_any(Path("grid.yaml")), GridJob)


def picture(name: str, text: str | None) -> Path:
    about = PngInfo()
    if text is not None:
        about.add_itxt("regional-job", text)
    Image.new("RGB", (64, 64)).save(name, pnginfo=about)
    return Path(name)


@pytest.mark.parametrize("composition", ["joint", "attention", "sequential"])
def test_the_job_of_a_picture_is_drawn_again_from_its_png_or_its_record(composition: str, workdir: Path) -> None:
    """Both have every field, `node` among them, also where nobody has touched it."""
    job = parse_job(JOB | {"composition": composition, "seed": 7})
    record = {"job": job.model_dump(mode="json"), "job_hash": "0" * 64, "images": ["x.png"]}
    Path("record.json").write_text(json.dumps(record))
    png = picture("x.png", job.model_dump_json())
    for file in (Path("record.json"), png):
        assert read_job(file) == read_any(file) == job
        assert read_job(file, ["seed=8"]).seed == 8
        assert str(refused(read_grid, file)).startswith(f"{file} holds the job of a finished picture, which regional r")
    assert str(refused(read_job, picture("y.png", None))).startswith("y.png is a picture without a job in it")
    assert str(refused(read_job, picture("z.png", "{"))).startswith("z.png is not valid JSON")


def test_of_a_picture_only_the_head_is_read(workdir: Path) -> None:
    job = picture("x.png", parse_job(JOB).model_dump_json())
    with job.open("ab") as file:
        file.truncate(2**40)
    assert read_job(job) == parse_job(JOB)
    Image.new("RGB", (8, 8)).save("text.png", pnginfo=_long_text())
    assert "text.png is a damaged picture" in str(refused(read_data, Path("text.png")))


def _long_text() -> PngInfo:
    about = PngInfo()
    about.add_itxt("regional-job", "x" * 3_000_000)
    return about


def test_every_mistake_of_every_file_is_told(workdir: Path) -> None:
    Path("jobs").mkdir()
    contents = {
        "a.yaml": "prompt: a sea",
        "b.yaml": "promt: a sea\nsteps: 0",
        "c.yaml": "",
        "d.yaml": yaml.safe_dump(GRID),
        "e.json": '{"prompt": "a", "prompt": "b"}',
    }
    for name, text in contents.items():
        Path("jobs", name).write_text(text)
    with pytest.raises(BadBatch) as caught:
        read_jobs("jobs/*")
    found = [str(mistake) for mistake in caught.value.mistakes]
    assert [line.partition(" is not allowed")[0] for line in found] == [
        "jobs/b.yaml: steps: 0",
        "jobs/b.yaml: promt: 'a sea'",
        "jobs/c.yaml is empty",
        "jobs/d.yaml is a grid, which regional grid draws",
        "jobs/e.json is not valid JSON (the key 'prompt' is there twice)",
    ]
    assert list(read_job_files("jobs/a*", ["steps=3"])) == [Path("jobs/a.yaml")]
    assert read_jobs("jobs/a*", ["steps=3"])[0].job.steps == 3


def with_set(*overrides: str) -> RenderJob:
    data = json.loads(json.dumps(JOB))
    for override in overrides:
        set_field(data, override, RenderJob)
    return parse_job(data)


@pytest.mark.parametrize(
    "text", ["a: b", "yes", "1girl", "[red] circle", "12", "null", "a=b", "# x", "", "{", "'a'", " a "]
)
def test_a_prompt_is_taken_as_it_stands(text: str) -> None:
    assert with_set(f"prompt={text}").prompt == text
    assert with_set(f"regions.1.prompt={text}").regions[1].prompt == text


@given(st.text(st.characters(codec="utf-8")))
def test_any_prompt_is_taken_as_it_stands(text: str) -> None:
    assert with_set(f"prompt={text}").prompt == text
    if text != "null":
        assert with_set(f"regions.0.negative_prompt={text}").regions[0].negative_prompt == text


def test_other_values_are_yaml() -> None:
    job = with_set(
        "seed=017",
        "regions.0.negative_prompt=null",
        "regions.0.mask={points: [[0, 0], [1, 0], [0, 1]]}",
        "regions.0.mask.points.1=[1, 1]",
        "composition=sequential",
        "node.overlap_factor=3",
        "regions.1.sampler=euler",
        "regions.1.mask={image: 'a: b.png'}",
        "regions.1.mask.image=1:30",
    )
    assert (job.seed, job.regions[0].negative_prompt, job.regions[1].sampler) == (17, None, "euler")
    assert job.regions[0].mask.model_dump()["points"] == ((0, 0), (1, 1), (0, 1))
    assert isinstance(job.node, RegionalSampler)
    assert (job.node.overlap_factor, job.regions[1].mask.model_dump()["image"]) == (3, "1:30")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed", "--set: 'seed' is not allowed; allowed: path.to.field=value, for instance"),
        ("=3", "--set: '=3' is not allowed; "),
        ("regions..prompt=x", "--set: 'regions..prompt=x' is not allowed; "),
        ("regions.-1.prompt=x", "--set regions.-1: '-1' is not allowed; allowed: 0 to 1 (regions has 2)"),
        ("regions.-1=x", "--set regions.-1: '-1' is not allowed; allowed: 0 to 1 (regions has 2)"),
        ("regions.2.prompt=x", "--set regions.2: '2' is not allowed; allowed: 0 to 1 (regions has 2)"),
        ("regions.x.prompt=1", "--set regions.x: 'x' is not allowed; allowed: 0 to 1 (regions has 2)"),
        ("regions.¹.prompt=1", "--set regions.¹: "),
        (
            "protect.0.image=x",
            "--set protect.0: '0' is not allowed; allowed: a path to what is there (protect has none)",
        ),
        ("prompt.deeper=1", "--set prompt.deeper: 'deeper' is not allowed; allowed: a path that ends at prompt, "),
        ("steps=[", "--set steps: '[' is not allowed; allowed: a value in YAML (line 1: "),
        ("steps=1:30", "steps: '1:30' is not allowed; allowed: a whole number"),
        ("promt=x", "promt: 'x' is not allowed; allowed: prompt (did you mean this?)"),
        ("region.0.prompt=x", "region: {'0': {'prompt': 'x'}} is not allowed; allowed: regions (did you mean this?)"),
    ],
)
def test_what_cannot_be_set_is_named(override: str, line: str) -> None:
    assert str(refused(with_set, override)).startswith(line)
