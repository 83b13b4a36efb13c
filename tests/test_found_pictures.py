"""A job that is finished is found: its files come from the store as they were made, and nothing else does."""

from __future__ import annotations

import asyncio
import io
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from prefect_regional_diffusion.flows.drawing.draw_job import draw_job
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.tasks.runtime.loaded_parts import LoadedParts

REGION = {"name": "left", "prompt": "a red circle", "mask": {"x": 0, "y": 0, "width": 0.5, "height": 1}}
JOB = {"prompt": "a blue background", "width": 64, "height": 64, "steps": 2, "batch_size": 2, "regions": [REGION]}


@pytest.fixture(autouse=True)
def loads(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts of models that were asked for, in order."""
    asked: list[str] = []
    using = LoadedParts.using

    def asked_for(parts: LoadedParts, key: Any, *others: Any) -> Any:
        asked.append(key.part)
        return using(parts, key, *others)

    monkeypatch.setattr(LoadedParts, "using", asked_for)
    return asked


def drawn(**fields: Any) -> list[bytes]:
    """The files of a job, drawn with the store in this folder."""
    record = asyncio.run(draw_job(parse_job(JOB | fields)))
    return [Path(image).read_bytes() for image in record["images"]]


def in_store() -> list[Path]:
    return sorted(Path(".regional/store/pictures").glob("*.png"))


def test_the_same_files_come_from_the_store_without_a_model(loads: list[str]) -> None:
    first = drawn()
    assert sorted(sha256(data).hexdigest() for data in first) == [file.stem for file in in_store()]
    loads.clear()
    for file in Path("renders").iterdir():
        file.unlink()
    assert drawn() == first
    assert loads == []


@pytest.mark.parametrize("of", ["pictures/*.png", "pictures/*.json"])
def test_what_is_damaged_is_made_again(of: str, loads: list[str]) -> None:
    first = drawn()
    next(Path(".regional/store").glob(of)).write_bytes(b"damaged")
    loads.clear()
    assert drawn() == first
    assert set(loads) == {"autoencoder"}
    loads.clear()
    assert drawn() == first
    assert loads == [], "it is mended"


def test_a_picture_says_the_job_as_it_was_written_this_time(loads: list[str]) -> None:
    drawn()
    loads.clear()
    (data, _) = drawn(regions=[REGION | {"name": "right"}])
    with Image.open(io.BytesIO(data)) as picture:
        assert json.loads(picture.info["regional-job"])["regions"][0]["name"] == "right"
    assert set(loads) == {"autoencoder"}


def changed_record(**changes: Any) -> None:
    (file,) = Path(".regional/store/pictures").glob("*.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_pictures_of_another_state_or_device_are_not_taken(loads: list[str]) -> None:
    """They may differ in the last bit from those of the state that the store has."""
    first = drawn()
    devices = [{"first": 1, "last": 2, "device": "another"}]
    for changes in ({"latents": f"latents/{'0' * 64}/00002"}, {"devices": devices}, {"pictures": []}):
        changed_record(**changes)
        loads.clear()
        assert drawn() == first
        assert set(loads) == {"autoencoder"}, changes


def test_a_planted_file_that_cannot_be_unpacked_is_not_handed_on(loads: list[str]) -> None:
    """It has the name that its content should have, and the size of the job: the first of two that it names."""
    first = drawn()
    buffer = io.BytesIO()
    Image.new("RGB", (30_000, 30)).save(buffer, format="PNG")
    planted = first[0][:33] + buffer.getvalue()[8:33] + first[0][33:]
    name = sha256(planted).hexdigest()
    Path(f".regional/store/pictures/{name}.png").write_bytes(planted)
    changed_record(pictures=[f"pictures/{name}.png", f"pictures/{sha256(first[1]).hexdigest()}.png"])
    assert drawn() == first
