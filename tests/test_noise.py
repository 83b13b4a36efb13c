"""Seeded noise, blends of noises, and Brownian paths."""

from __future__ import annotations

import math
from itertools import pairwise
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.names import VariationMethod
from prefect_regional_diffusion.sampling_core.noise.brownian import BrownianNoise
from prefect_regional_diffusion.sampling_core.noise.initial import (
    initial_noise,
    mix_noise,
    original_mix_noise,
    original_touch_noise,
)

SHAPE = (2, 4, 8, 8)
SEEDS = st.integers(0, 2**64 - 1)
LEVELS = st.lists(st.floats(0.03, 14.6), min_size=2, max_size=8, unique_by=lambda level: round(level, 5))


@given(seed=SEEDS, batch_index=st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_pictures_keep_their_noise(seed: int, batch_index: list[int]) -> None:
    whole = initial_noise(seed, (6, 4, 8, 8))
    torch.manual_seed(7)
    kept = initial_noise(seed, (1, 4, 8, 8), batch_index)
    assert torch.equal(kept, whole[batch_index])
    assert torch.initial_seed() == 7, "the process-wide random state must not be touched"


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_impossible_seeds(seed: int) -> None:
    with pytest.raises(BadInput, match="seed: "):
        initial_noise(seed, SHAPE)
    with pytest.raises(BadInput, match="seed: "):
        BrownianNoise(SHAPE, seed, 0.03, 14.6)
    with pytest.raises(BadInput, match="variation_seed: "):
        original_touch_noise(torch.zeros(SHAPE), torch.ones(8, 8), seed, 0.5, "linear")


def test_negative_seeds_have_noise_but_no_path() -> None:
    assert torch.equal(initial_noise(-1, SHAPE), initial_noise(2**64 - 1, SHAPE))
    with pytest.raises(BadInput, match="seed: -1"):
        BrownianNoise(SHAPE, -1, 0.03, 14.6)


@pytest.mark.parametrize("batch_index", [[], [0, -1]])
def test_refuses_odd_batch_indices(batch_index: list[int]) -> None:
    with pytest.raises(BadInput, match="batch_index: "):
        initial_noise(0, SHAPE, batch_index)


@given(seed=SEEDS, other=SEEDS, strength=st.floats(0, 1), method=st.sampled_from(["linear", "slerp"]))
def test_blend_is_finite_and_goes_from_one_to_the_other(
    seed: int, other: int, strength: float, method: VariationMethod
) -> None:
    one, two = initial_noise(seed, SHAPE), initial_noise(other, SHAPE)
    for end, noise in ((0.0, one), (1.0, two)):
        torch.testing.assert_close(mix_noise(one, two, end, method), noise, rtol=0, atol=1e-4)
    assert mix_noise(one, two, strength, method).isfinite().all()
    if seed != other:
        found, original = (mix(one, two, strength, method) for mix in (mix_noise, original_mix_noise))
        assert torch.equal(found, original)


@pytest.mark.parametrize("method", ["linear", "slerp"])
def test_blend_of_independent_noises_has_unit_variance(method: VariationMethod) -> None:
    one, two = (initial_noise(seed, (1, 4, 128, 128)) for seed in (1, 2))
    assert float(mix_noise(one, two, 0.3, method).std()) == pytest.approx(1, abs=0.02)


def test_equal_noises_blend_to_themselves_but_not_in_the_original() -> None:
    noise = initial_noise(5, (1, 4, 16, 16))
    torch.testing.assert_close(mix_noise(noise, noise, 0.5, "slerp"), noise)
    assert not original_mix_noise(noise, noise, 0.5, "slerp").isfinite().all()


def test_original_variation_leaves_soft_cells_without_noise() -> None:
    noise = initial_noise(1, (1, 4, 8, 8))
    mask = torch.ones(64, 64)
    mask[:, :16] = 0
    mask[:, 16:24] = 0.5
    touched = original_touch_noise(noise, mask, 2, 1.0, "linear")
    assert torch.equal(touched[..., :2], noise[..., :2])
    assert not touched[..., 2].any()
    assert torch.equal(touched[..., 3:], initial_noise(2, (1, 4, 8, 8))[..., 3:])
    assert original_touch_noise(noise, mask, 2, 0.0, "linear") is noise
    with pytest.raises(BadInput, match="mask: "):
        original_touch_noise(noise, torch.ones(2, 64, 64), 2, 0.5, "linear")


@settings(max_examples=20)
@given(seed=SEEDS, levels=LEVELS, order=st.randoms(use_true_random=False))
def test_increments_depend_on_the_interval_alone(seed: int, levels: list[float], order: Random) -> None:
    """Bits do not change with what was asked before, nor with the object that is asked."""
    intervals = list(pairwise(levels))
    one = BrownianNoise(SHAPE, seed, 0.0291675, 14.614641)
    first = {interval: one.increment(*interval) for interval in intervals}
    order.shuffle(intervals)
    other = BrownianNoise(SHAPE, seed, 0.0291675, 14.614641)
    for interval in intervals:
        assert torch.equal(other.increment(*interval), first[interval])
        assert torch.equal(one.increment(*interval), first[interval])


@settings(max_examples=20)
@given(seed=SEEDS, levels=LEVELS)
def test_increments_add_up(seed: int, levels: list[float]) -> None:
    path = BrownianNoise(SHAPE, seed, 0.0291675, 14.614641)

    def moved(sigma: float, sigma_next: float) -> torch.Tensor:
        return path.increment(sigma, sigma_next) * math.sqrt(abs(sigma_next - sigma))

    parts = torch.stack([moved(*interval) for interval in pairwise(levels)]).sum(dim=0)
    torch.testing.assert_close(parts, moved(levels[0], levels[-1]), rtol=0, atol=1e-2)
    assert torch.equal(path.increment(levels[0], levels[1]), -path.increment(levels[1], levels[0]))


def test_increments_are_unit_noise() -> None:
    path = BrownianNoise((1, 4, 64, 64), 3, 0.0291675, 14.614641)
    drawn = torch.stack([path.increment(*interval) for interval in pairwise([14.614641, 6.5, 1.2, 0.11, 0.0291675])])
    flat = drawn.flatten(1)
    torch.testing.assert_close(flat @ flat.T / flat.shape[1], torch.eye(4), rtol=0, atol=0.05)


def test_increments_at_the_edge_of_the_path() -> None:
    """Nothing is drawn below the lowest level, and an empty interval moves nothing."""
    path = BrownianNoise(SHAPE, 3, 0.5, 14.0)
    assert not path.increment(3.0, 3.0).any()
    assert not path.increment(0.4, 0.1).any()
    inside = path.increment(2.0, 0.5) * math.sqrt(1.5)
    torch.testing.assert_close(path.increment(2.0, 0.25) * math.sqrt(1.75), inside)
    assert not BrownianNoise(SHAPE, 3, 0.5, 0.5).increment(0.6, 0.4).any()
