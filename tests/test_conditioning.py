"""Conditionings are stacked and taken apart without changing a bit, stored under their names, and never mixed up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from prefect_regional_diffusion.sampling_core.engine.batching import Count, EvaluationContext, evaluate
from prefect_regional_diffusion.sampling_core.engine.guidance import ClassifierFreeGuidance, PromptKey, Request
from prefect_regional_diffusion.sampling_core.hashing import content_hash
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning, stack
from prefect_regional_diffusion.sampling_core.models.latent_affine import LatentAffine
from prefect_regional_diffusion.sampling_core.models.model_key import LoraKey, ModelKey
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from prefect_regional_diffusion.sampling_core.schedules.noise_levels import Level
from prefect_regional_diffusion.sampling_core.solvers import DenoiseRequest
from prefect_regional_diffusion.sampling_core.tensors.specs import specs_of
from prefect_regional_diffusion.tasks.storage import keys
from prefect_regional_diffusion.tasks.storage.store import Store

SHAPES = st.dictionaries(
    st.sampled_from(["prompt_embeds", "pooled_prompt_embeds", "mask", "time_ids"]),
    st.lists(st.integers(1, 4), max_size=3),
    max_size=4,
)


def told(shapes: dict[str, list[int]], seed: int, rows: int = 1) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    return Conditioning({name: torch.randn(rows, *shape, generator=generator) for name, shape in shapes.items()})


def equal(one: Conditioning, other: Conditioning) -> bool:
    same = one.tensors.keys() == other.tensors.keys()
    return same and all(torch.equal(tensor, other[name]) for name, tensor in one.tensors.items())


@given(SHAPES, st.lists(st.tuples(st.integers(0, 99), st.integers(1, 3)), min_size=1, max_size=4))
def test_rows_are_found_where_they_were_put(shapes: dict[str, list[int]], parts: list[tuple[int, int]]) -> None:
    stacked = stack([told(shapes, seed).repeated(count) for seed, count in parts])
    seeds = [seed for seed, count in parts for _ in range(count)]
    assert all(len(tensor) == len(seeds) for tensor in stacked.tensors.values())
    for row, seed in enumerate(seeds):
        assert equal(stacked.rows(slice(row, row + 1)), told(shapes, seed))


@given(SHAPES, SHAPES)
def test_what_is_told_otherwise_is_not_stacked(one: dict[str, list[int]], other: dict[str, list[int]]) -> None:
    if one == other:
        assert equal(stack([told(one, 0), told(other, 1)]).rows(slice(1, 2)), told(other, 1))
    else:
        with pytest.raises(ValueError, match="same names, types and shapes"):
            stack([told(one, 0), told(other, 1)])


def test_other_types_are_not_stacked() -> None:
    with pytest.raises(ValueError, match="same names, types and shapes"):
        stack([Conditioning({"x": torch.zeros(1, 2)}), Conditioning({"x": torch.zeros(1, 2, dtype=torch.float16)})])


@pytest.mark.parametrize("tensors", [{"x": torch.zeros(())}, {"x": torch.zeros(1), "y": torch.zeros(2)}])
def test_tensors_have_as_many_rows_each(tensors: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="rows"):
        Conditioning(tensors)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(SHAPES.filter(bool), st.integers(0, 99))
def test_a_store_gives_back_what_it_was_given(tmp_path: Path, shapes: dict[str, list[int]], seed: int) -> None:
    store, key = Store(str(tmp_path)), keys.prompt(content_hash([shapes, seed]))
    one = told(shapes, seed)
    store.write_tensors(key, one.tensors)
    found = store.read_tensors(key, specs_of(one.tensors))
    assert found is not None
    assert equal(Conditioning(found), one)


class Sums:
    """Answers each row with the sum of all that it is told, and remembers how many rows came together."""

    def __init__(self) -> None:
        self.sizes = list[int]()

    def __call__(
        self, x: Tensor, levels: Sequence[Level], conditioning: Conditioning, adapters: Sequence[RowAdapters] = ()
    ) -> Tensor:
        self.sizes.append(len(x))
        sums = sum(tensor.flatten(1).sum(dim=1) for tensor in conditioning.tensors.values())
        return torch.zeros_like(x) + torch.as_tensor(sums)[:, None, None, None]


def test_prompts_of_other_lengths_have_forwards_of_their_own() -> None:
    """A family that does not fill prompts up to one length gets each row as it is."""
    prompts = {"a": 2, "b": 5, "c": 2, "": 5}
    encoded = {PromptKey("", name): Conditioning({"x": torch.ones(1, length, 3)}) for name, length in prompts.items()}
    network, x = Sums(), torch.zeros(2, 4, 3, 3)
    asked = [Request(DenoiseRequest(x, Level(1.0, 1.0)), ClassifierFreeGuidance(2.0, name, "")) for name in "abc"]
    answers, count = evaluate(asked, EvaluationContext({"": network}, encoded))
    assert sorted(network.sizes) == [4, 4]
    assert count == Count(8, 2, shared=4)
    assert [float(answer.denoised[0, 0, 0, 0]) for answer in answers] == [-3.0, 15.0, -3.0]


@given(st.integers(1, 8), st.integers(0, 99), st.booleans())
def test_an_affine_goes_there_and_back(channels: int, seed: int, of_each: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(2, channels if of_each else 1, generator=generator) + 0.1
    affine = LatentAffine(tuple(numbers[0].tolist()), tuple(numbers[1].tolist()))
    latent = torch.randn(2, channels, 3, 2, generator=generator)
    torch.testing.assert_close(affine.to_autoencoder(affine.to_model(latent)), latent, atol=1e-5, rtol=1e-5)
    expected = (latent - numbers[1][:, None, None]) * numbers[0][:, None, None]
    torch.testing.assert_close(affine.to_model(latent), expected)


def test_the_key_of_a_model_has_its_adapters_in_it() -> None:
    plain, one, other = "1" * 64, LoraKey("2" * 64, 0.5, 0.5), LoraKey("3" * 64, 1.0, 0.0)
    assert ModelKey(plain).digest == plain
    keyed = [(), (one,), (other,), (one, other), (one._replace(strength=0.6),)]
    assert len({ModelKey(plain, adapters).digest for adapters in keyed}) == len(keyed)
