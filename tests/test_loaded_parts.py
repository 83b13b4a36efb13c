"""What a process has loaded: each part once for all jobs, in a bounded memory, and told to people."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from prefect_regional_diffusion.flows.drawing.draw_job import draw_job
from prefect_regional_diffusion.sampling_core.job.parsing import parse_job
from prefect_regional_diffusion.sampling_core.models.family import Part
from prefect_regional_diffusion.sampling_core.models.model_key import ModelKey
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.tasks.machine.load_listener import Load, load_listener
from prefect_regional_diffusion.tasks.machine.once import once
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.loaded_parts import LoadedParts, loaded_parts
from prefect_regional_diffusion.tasks.runtime.model_cache import PartKey, denoiser, open_model
from tests.tiny_loras import UNETS, asked, lora_models, used

JOBS = 100
WARM = 24


def never() -> Any:
    raise AssertionError("it was loaded again")


def test_the_least_recently_used_one_leaves_first_and_before_another_is_loaded() -> None:
    parts = LoadedParts(30)
    seen = list[tuple[Any, ...]]()

    def load() -> str:
        seen.append(parts.keys)
        return "value"

    for key in "abc":
        with parts.using(key, 10, load) as found:
            assert found == "value"
    with parts.using("a", 10, never):
        pass
    with parts.using("d", 20, load):
        pass
    assert seen == [(), ("a",), ("a", "b"), ("a",)], "b and c made room, and a was used after them"
    assert parts.keys == ("a", "d")
    assert parts.bytes == 30


def test_what_is_in_use_stays_and_what_exceeds_the_bound_is_let_go_after_its_use() -> None:
    parts = LoadedParts(30)
    with parts.using("a", 20, object) as first, parts.using("large", 100, object):
        with parts.using("a", 20, never) as again:
            assert again is first
        parts.let_go(lambda _: True)
        assert parts.keys == ("large", "a")
        with parts.using("large", 100, never):
            pass
    assert parts.keys == ("a",)
    parts.let_go(lambda key: key == "a")
    assert parts.keys == ()


def test_names_are_those_of_what_is_there() -> None:
    parts = LoadedParts(30)
    for key, name in (("a", "sdxl"), ("b", None), ("a", "also sdxl"), ("c", "flux")):
        with parts.using(key, 10, object, name):
            pass
    assert parts.names == {"sdxl", "also sdxl", "flux"}
    with parts.using("d", 20, object):
        pass
    assert parts.names == {"flux"}, "a was used before c"


def test_what_does_not_load_leaves_nothing_behind() -> None:
    parts = LoadedParts(30)
    with pytest.raises(ZeroDivisionError), parts.using("a", 10, lambda: 1 // 0):
        pass
    assert parts.keys == ()
    with parts.using("a", 10, object):
        assert parts.keys == ("a",)


def test_threads_that_ask_at_once_wait_for_one_loading() -> None:
    parts, loads, together = LoadedParts(100), list[object](), threading.Barrier(4)

    def load() -> object:
        loads.append(object())
        return loads[-1]

    def ask(_: int) -> object:
        together.wait(10)
        with parts.using("a", 10, load) as found:
            return found

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert len(loads) == 1
    assert set(map(id, found)) == {id(loads[0])}


def test_threads_that_ask_at_once_get_one_value() -> None:
    """Two caches of a process would load a model each."""
    together = threading.Barrier(4)

    @once
    def value() -> object:
        time.sleep(0.1)  # for the others to ask meanwhile
        return object()

    def ask(_: int) -> object:
        together.wait(10)
        return value()

    with ThreadPoolExecutor(4) as pool:
        (first, *others) = pool.map(ask, range(4))
    assert all(other is first for other in others)
    value.cache_clear()
    assert value() is not first


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora_models(tmp_path_factory.mktemp("models"), UNETS)


@pytest.fixture
def machine(made: Path, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the machine up anew, with nothing loaded; the working directory has links to the models and LoRAs."""
    for place in made.iterdir():
        (workdir / place.name).symlink_to(place)
    monkeypatch.setenv("REGIONAL_ASSET_ROOTS", f"{workdir},{made}")

    def set_up(**chosen: object) -> None:
        for name, value in chosen.items():
            monkeypatch.setenv(f"REGIONAL_{name}".upper(), str(value))
        settings.cache_clear()
        loaded_parts.cache_clear()

    set_up()
    return set_up


def job(number: int, **fields: Any) -> dict[str, Any]:
    """Jobs alternate between two models, and each of those between two LoRAs."""
    model, lora = ("sd", "xl")[number % 2], ("a", "t")[number // 2 % 2]
    small = {"width": 64, "height": 64, "steps": 1, "sampler": "euler", "seed": number}
    return asked(model, loras=[used(model, lora)], **small) | fields


async def drawn(*jobs: dict[str, Any]) -> list[str]:
    """What was loaded to draw jobs at the same time."""
    heard = list[str]()

    def listen(load: Load) -> None:
        if load.seconds is not None:
            heard.append(load.what)

    token = load_listener.set(listen)
    try:
        await asyncio.gather(*(draw_job(parse_job(one)) for one in jobs))
    finally:
        load_listener.reset(token)
    return heard


def test_a_second_job_loads_nothing_again(machine: Callable[..., None]) -> None:
    first = asyncio.run(drawn(job(0, prompt="a circle", negative_prompt="")))
    assert first == ["text encoders of sd", "denoiser of sd", "LoRA sd-a.safetensors", "autoencoder of sd"]
    assert asyncio.run(drawn(job(0, prompt="a circle", negative_prompt="", seed=9))) == []
    kept = [key.part for key in loaded_parts().keys if isinstance(key, PartKey)]
    assert kept == ["denoiser", "autoencoder"], "text encoders leave once prompts are encoded"


def test_jobs_at_the_same_time_load_a_model_once_and_draw_what_they_draw_alone(machine: Callable[..., None]) -> None:
    """Each hangs its own LoRA on the one network."""
    jobs = [job(number, model="sd", loras=[used("sd", lora)]) for number, lora in enumerate("abt")]
    alone = [Path(asyncio.run(draw_job(parse_job(one)))["images"][0]).read_bytes() for one in jobs]
    machine(store=".regional/other", out="other")
    loads = Counter(asyncio.run(drawn(*jobs)))
    assert {what: loads[what] for what in ("denoiser of sd", "autoencoder of sd")} == {
        "denoiser of sd": 1,
        "autoencoder of sd": 1,
    }
    together = [Path(asyncio.run(draw_job(parse_job(one)))["images"][0]).read_bytes() for one in jobs]
    assert together == alone


def tensors_alive() -> int:
    """Bytes of all tensors that Python knows of."""
    gc.collect()
    found = {one.untyped_storage().data_ptr(): one.nbytes for one in gc.get_objects() if type(one) is torch.Tensor}
    return sum(found.values())


@pytest.mark.timeout(900)
def test_a_hundred_jobs_on_two_models_and_four_loras_end_with_the_memory_that_they_began_with(
    machine: Callable[..., None],
) -> None:
    bound = 2**28
    machine(max_loaded_bytes=bound, preview_seconds=0, keep="final")
    loads, resident, alive = Counter[str](), list[int](), list[int]()
    for number in range(JOBS):
        loads.update(asyncio.run(drawn(job(number))))
        assert loaded_parts().bytes <= bound
        if number + 1 in (WARM, JOBS):
            alive.append(tensors_alive())
            resident.append(psutil.Process().memory_info().rss)
    texts = {f"text encoders of {model}": 2 for model in ("sd", "xl")}
    denoisers = {f"denoiser of {model}": 1 for model in ("sd", "xl")}
    autoencoders = {f"autoencoder of {model}": 1 for model in ("sd", "xl")}
    loras = {f"LoRA {model}-a.safetensors": 1 for model in ("sd", "xl")}
    of_text = {f"LoRA {model}-t.safetensors": 2 for model in ("sd", "xl")}
    # Text encoders: with each LoRA that acts on them, and without; what they have encoded is in the store.
    assert loads == texts | denoisers | autoencoders | loras | of_text
    assert alive[1] <= alive[0] * 1.02
    assert resident[1] <= resident[0] * 1.02


def test_models_that_have_no_room_together_come_and_go_within_the_bound(machine: Callable[..., None]) -> None:
    parts: tuple[Part, ...] = ("denoiser", "autoencoder")
    sizes = [sum(open_model(name).part_bytes(part, Placement()) for part in parts) for name in ("sd", "xl")]
    bound = max(sizes) + 2**18
    machine(max_loaded_bytes=bound, preview_seconds=0, keep="final")
    loads, alive = Counter[str](), list[int]()
    for number in range(8):
        loads.update(asyncio.run(drawn(job(number))))
        assert loaded_parts().bytes <= bound
        alive.append(tensors_alive())
    assert {loads[f"denoiser of {model}"] for model in ("sd", "xl")} == {4}
    assert max(alive[4:]) <= max(alive[:4]) * 1.02


def test_a_flow_run_is_told_in_its_log(machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    logger = SimpleNamespace(info=lambda form, load: said.append(form % load))
    monkeypatch.setattr("prefect_regional_diffusion.tasks.machine.load_listener.in_flow_run", lambda: True)
    monkeypatch.setattr("prefect.logging.get_run_logger", lambda: logger)
    size = open_model("sd").part_bytes("denoiser", Placement())
    with denoiser("/models/sd\x1b[31m", open_model("sd"), ModelKey(open_model("sd").fingerprint())):
        pass
    (line,) = said
    assert re.fullmatch(rf"loaded denoiser of sd\S* \({size / 1e6:.1f} MB\) in \d+\.\d s", line)
    assert "\x1b" not in line
