"""Masks in pixels and on the lattice, and weights that share every cell."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.sampling_core.masks import rasterize as masks
from prefect_regional_diffusion.sampling_core.masks.region_weights import by_order, by_weight, merge, stack_below

SIZE = (48, 80)


def test_rectangle_covers_its_share() -> None:
    mask = masks.rectangle(SIZE, x=0.25, y=0.5, width=0.5, height=0.5)
    assert mask[24:, 20:60].all()
    assert float(mask.sum()) == 24 * 40


@given(x=st.floats(0, 1), cut=st.floats(0, 1))
def test_tiles_neither_overlap_nor_leave_a_gap(x: float, cut: float) -> None:
    """Two rectangles that share an edge cover each pixel once, wherever the edge is."""
    left = masks.rectangle(SIZE, 0, 0, max(cut, 1e-9), 1)
    right = masks.rectangle(SIZE, cut, 0, 1 - cut + 1e-9, 1)
    assert torch.equal(left + right, torch.ones(SIZE))


def test_ellipse_area() -> None:
    mask = masks.ellipse((400, 400), 0.5, 0.5, 0.5, 0.25)
    assert float(mask.mean()) == pytest.approx(3.14159 / 8, rel=1e-3)


def test_polygon_is_a_rectangle_when_its_points_are() -> None:
    points = [(0.25, 0.5), (0.75, 0.5), (0.75, 1.0), (0.25, 1.0)]
    assert torch.equal(masks.polygon(SIZE, points), masks.rectangle(SIZE, 0.25, 0.5, 0.5, 0.5))
    assert torch.equal(masks.polygon(SIZE, points[::-1]), masks.polygon(SIZE, points))


def test_polygon_crossing_itself_is_even_odd() -> None:
    bow_tie = masks.polygon((100, 100), [(0, 0), (1, 1), (1, 0), (0, 1)])
    assert bow_tie[50, 10] == 1
    assert bow_tie[10, 50] == 0


@given(pixels=st.integers(0, 30), where=st.tuples(*[st.floats(0.2, 0.7)] * 2))
def test_grown_reaches_so_many_pixels_further(pixels: int, where: tuple[float, float]) -> None:
    """On every side, as far as the canvas goes."""
    mask = masks.rectangle((90, 120), *where, 0.2, 0.2)
    rows, columns = mask.nonzero().T
    wider = torch.zeros_like(mask)
    top, left = max(int(rows.min()) - pixels, 0), max(int(columns.min()) - pixels, 0)
    wider[top : int(rows.max()) + pixels + 1, left : int(columns.max()) + pixels + 1] = 1
    assert torch.equal(masks.grown(mask, pixels), wider)


@given(feather=st.integers(0, 40), width=st.floats(0.2, 0.9))
def test_feather_keeps_the_middle_of_an_edge(feather: int, width: float) -> None:
    """A straight edge fades over `feather` pixels, half inside; along the canvas' border nothing fades."""
    hard = masks.rectangle((64, 200), 0, 0, width, 1)
    soft = masks.feathered(hard, feather)
    assert torch.equal(soft[0], soft[-1]), "the canvas' border must be no edge"
    edge = int(hard[0].sum())
    reach = feather // 2 + 1
    assert (soft[0, : max(edge - reach, 0)] > 1 - 1e-5).all()
    assert (soft[0, edge + reach :] < 1e-5).all()
    if feather >= 2 and reach < edge < 200 - reach:
        assert float(soft[0, edge - 1] + soft[0, edge]) == pytest.approx(1, abs=1e-4)


def test_lattice_holds_covered_fractions() -> None:
    mask = masks.rectangle((16, 16), 0, 0, 0.75, 1)
    assert masks.to_lattice(mask, 8).tolist() == [[1.0, 0.5], [1.0, 0.5]]


def test_image_and_color_map() -> None:
    photo = torch.zeros(24, 40, 3, dtype=torch.uint8)
    photo[:, 20:] = torch.tensor([255, 0, 255], dtype=torch.uint8)
    half = masks.from_color_map(SIZE, photo, (255, 0, 255))
    assert half[:, 44:].eq(1).all()
    assert half[:, :36].eq(0).all()
    assert masks.from_image(SIZE, photo)[0, -1] == pytest.approx(2 / 3, abs=1e-3)
    assert not masks.from_color_map(SIZE, photo, (255, 0, 254)).any()


@pytest.mark.parametrize(
    ("mask", "message"),
    [(torch.zeros(16, 16), "empty"), (masks.rectangle((16, 16), 0, 0, 0.4, 0.4), "one latent cell, 8 x 8")],
)
def test_refuses_too_little(mask: torch.Tensor, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        masks.check_extent(mask, 8, "regions.0.mask", "value")


@given(
    cover=st.lists(st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_weights_sum_to_one(cover: list[list[float]], seed: int) -> None:
    regions = [torch.tensor(row).reshape(2, 3) for row in cover]
    weights = torch.rand(len(regions), generator=torch.Generator().manual_seed(seed)) + 0.1
    base, shares = by_weight(regions, weights.tolist())
    total = torch.stack([base, *shares]).sum(dim=0)
    torch.testing.assert_close(total, torch.ones(2, 3), rtol=0, atol=1e-6)
    assert (base >= 0).all()
    assert all((share >= 0).all() for share in shares)


def test_what_regions_leave_goes_to_those_beneath() -> None:
    ramp, full = torch.linspace(0, 1, 6).expand(4, 6), torch.ones(4, 6)
    base, (over, under) = stack_below(by_order([ramp]), by_order([full]))
    assert torch.equal(over, ramp)
    assert torch.equal(under, 1 - ramp)
    assert not base.any()
    base, (over, under) = stack_below(by_order([ramp]), by_order([full / 2]))
    torch.testing.assert_close(under, (1 - ramp) / 2)
    torch.testing.assert_close(base + under + over, full)


def test_overlap_is_shared_by_weight_and_cover_leaves_the_base_nothing() -> None:
    full = torch.ones(2, 2)
    base, (one, two) = by_weight([full, full], [3.0, 1.0])
    assert not base.any()
    assert one.eq(0.75).all()
    assert two.eq(0.25).all()


def test_soft_edges_that_complement_each_other_need_no_base() -> None:
    ramp = torch.linspace(0, 1, 9).reshape(1, 9)
    base, _ = by_weight([ramp, 1 - ramp], [1.0, 1.0])
    assert not base.any()


def test_merge_of_one_is_untouched() -> None:
    latent = torch.rand(1, 4, 2, 2)
    assert merge([latent], [torch.ones(2, 2)]) is latent
