"""Masks as the original nodes treat them: what the recordings do not cover, and what is odd about them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefect_regional_diffusion.sampling_core.comfyui import masks
from prefect_regional_diffusion.sampling_core.errors import BadInput


def square(height: int, width: int, top: int, left: int, size: int) -> torch.Tensor:
    mask = torch.zeros(height, width)
    mask[top : top + size, left : left + size] = 1
    return mask


def rows_of(mask: torch.Tensor) -> list[int]:
    return mask.amax(dim=-1).nonzero().flatten().tolist()


@given(factor=st.integers(0, 12))
def test_square_mask_grows_less_up_and_left_when_the_factor_is_even(factor: int) -> None:
    """Within a square canvas, exchanging height and width changes nothing."""
    grown = masks.grown_in_mask_pixels(square(64, 64, 20, 30, 10), factor)[0, 0]
    reach = max(factor, 1) - 1
    less = reach // 2
    assert torch.equal(grown, square(64, 64, 20 - less, 30 - less, 10 + reach))


@given(factor=st.integers(0, 12), value=st.sampled_from([0.2, 0.5, 0.6]), n=st.integers(1, 3))
def test_growing_counts_neighbours(factor: int, value: float, n: int) -> None:
    """As a sum over a square of ones would, on a mask that came exchanged and hardened."""
    mask = value * torch.rand(n, 6, 9, generator=torch.Generator().manual_seed(factor)).round()
    grown = masks.grown_in_latent_cells(mask, (9, 6), factor)
    assert grown.shape == (n, 1, 6, 9)
    kernel = torch.ones(1, 1, max(factor, 1), max(factor, 1))
    counted = torch.nn.functional.conv2d(mask[:, None].round(), kernel, padding=max(factor, 1) // 2)
    assert torch.equal(grown, counted[:, :, :6, :9].clamp(0, 1))


def test_one_factor_is_eight_times_as_much_in_latent_cells() -> None:
    mask = square(128, 128, 48, 48, 32)
    in_pixels = masks.grown_in_mask_pixels(mask, 5)
    in_cells = masks.grown_in_latent_cells(mask, (16, 16), 5)
    assert rows_of(in_pixels[0, 0]) == list(range(46, 82))
    assert rows_of(in_cells[0, 0]) == list(range(4, 12))


def test_soft_cells_belong_to_nobody() -> None:
    mask = torch.tensor([[0.0, 0.4, 0.5, 0.6]]).repeat(4, 1)
    base, region = masks.base_mask([mask]), masks.grown_in_mask_pixels(mask, 0)[0, 0]
    assert base[0].tolist() == [1, 0, 0, 0]
    assert region[0].tolist() == [0, 0, 0, 1]
    assert masks.base_mask_of_two(mask)[0].tolist() == [1, 1, 1, 1]


def test_refuses_what_the_originals_fail_on() -> None:
    with pytest.raises(BadInput, match="overlap_factor: -1"):
        masks.grown_in_mask_pixels(torch.ones(8, 8), -1)
    with pytest.raises(BadInput, match="overlap_factor: -3"):
        masks.grown_in_latent_cells(torch.ones(8, 8), (8, 8), -3)
    with pytest.raises(BadInput, match="at least one region"):
        masks.base_mask([])
    with pytest.raises(BadInput, match="masks of one size"):
        masks.base_mask([torch.ones(8, 8), torch.ones(64, 64)])
    with pytest.raises(BadInput, match="x: -8"):
        masks.composite(torch.ones(1, 4, 8, 8), torch.ones(1, 4, 8, 8), -8, 0)


def test_mask_of_two_pictures_loses_its_axes() -> None:
    """Its count is taken for the height, its height for the width."""
    pair = torch.ones(2, 128, 96)
    assert masks.grown_in_mask_pixels(pair, 3).shape == (2, 1, 128, 2)
    assert masks.single_mask(pair) is pair
    assert masks.single_mask(torch.ones(1, 1, 8, 6)).shape == (8, 6)


@given(n=st.integers(1, 4), count=st.integers(1, 5))
def test_masks_serve_pictures_in_turn(n: int, count: int) -> None:
    levels = torch.arange(n) / 4
    mask = levels[:, None, None].expand(n, 16, 24)
    prepared = masks.noise_mask(mask, (count, 4, 2, 3))
    assert prepared.shape == (count, 4, 2, 3)
    assert prepared[:, 3, 1, 2].tolist() == [levels[i % n] for i in range(count)]


@given(x=st.integers(0, 80), y=st.integers(0, 80), rows=st.integers(1, 9), columns=st.integers(1, 9))
def test_composite_covers_whole_cells_inside_the_canvas(x: int, y: int, rows: int, columns: int) -> None:
    destination = torch.zeros(2, 4, 6, 8)
    found = masks.composite(destination, torch.ones(1, 4, rows, columns), x, y)
    wanted = torch.zeros(6, 8)
    wanted[y // 8 : y // 8 + rows, x // 8 : x // 8 + columns] = 1
    assert torch.equal(found, wanted.expand(2, 4, 6, 8))
    assert not destination.any(), "the caller's latent must stay as it is"
