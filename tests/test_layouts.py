"""The scores of `benchmarks.layouts`, on pictures that are drawn by rules and so known."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks.layouts.__main__ import layouts
from benchmarks.layouts.figures import FIGURES, bars, mean
from benchmarks.layouts.methods import METHODS, refusal
from benchmarks.layouts.scenes import KINDS, Box, Layout, random_layout
from benchmarks.layouts.scores import change, scores
from benchmarks.reading import Bytes
from benchmarks.whole_model import run_on
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.planning.compile import cost
from prefect_regional_diffusion.tasks.runtime.prepare import prepare
from training.canvases import place
from training.scenes import CELL, INK, PALETTE, rgb

SIZES = [(1, 128), (4, 256), (16, 512)]


def drawn(layout: Layout, *, down: int = 0) -> Bytes:
    """The layout as it is asked for; objects lie so many pixels below their places."""
    rng, canvas = np.random.default_rng(layout.seed), (layout.edge, layout.edge)
    picture = np.broadcast_to(rgb(layout.base), (*canvas, 3)).copy()
    for box, scene in zip(layout.boxes, layout.scenes, strict=True):
        shown = place(scene, rng, canvas, (box.top + down, box.left, box.bottom + down, box.right))
        part = slice(box.top, box.bottom), slice(box.left, box.right)
        picture[part] = shown[part]
    return (255 * picture).round().astype(np.uint8)


def layout_of(kind: str, count: int, edge: int) -> Layout:
    return random_layout(random.Random(5), kind, count, edge)


@pytest.mark.parametrize(("count", "edge"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_as_prompted_has_the_best_scores(kind: str, count: int, edge: int) -> None:
    layout = layout_of(kind, count, edge)
    perfect, shifted = scores(drawn(layout), layout), scores(drawn(layout, down=edge // 8), layout)
    assert (perfect.success, perfect.background) == (1, 1)
    assert perfect.iou > 0.9
    # A canvas with one box and nothing else has no border.
    assert math.isnan(perfect.seam) if (kind, count) in {("partition", 1), ("overlaps", 1)} else perfect.seam < 1e-3
    assert shifted.iou < perfect.iou - 0.1


def test_an_object_outside_of_its_place_is_no_success() -> None:
    layout = layout_of("partition", 4, 256)
    assert scores(drawn(layout, down=64), layout).success == 0


def test_other_colors_are_seen() -> None:
    """Everything in the next colour of the palette: neither objects nor backgrounds are right."""
    layout, colors = layout_of("gaps", 4, 256), list(PALETTE)
    following = dict(zip(colors, [*colors[1:], colors[0]], strict=True))
    recolored = tuple(
        replace(scene, background=following[scene.background], color=following[scene.color]) for scene in layout.scenes
    )
    wrong = scores(drawn(layout._replace(scenes=recolored)), layout)
    assert (wrong.success, wrong.background) == (0, 0)
    assert wrong.iou < 0.5


def test_an_object_of_ink_alone_has_no_color() -> None:
    layout = layout_of("partition", 4, 256)
    picture, right = drawn(layout), scores(drawn(layout), layout)
    for box, scene in zip(layout.boxes, layout.scenes, strict=True):
        crop = picture[box.top : box.bottom, box.left : box.right]
        crop[(np.abs(crop - 255 * rgb(scene.background)) > 1).any(axis=-1)] = INK
    assert (right.iou > 0.9, scores(picture, layout).iou) == (True, 0)


def test_a_seam_is_found_at_borders_alone() -> None:
    """Lines of two pixels, along every border or in the middle of nowhere; and a step that is softer than asked for."""
    layout = layout_of("partition", 16, 512)
    picture = drawn(layout)
    along, elsewhere, soft = picture.copy(), picture.copy(), picture.astype(float)
    for border in (128, 256, 384):
        along[border - 1 : border + 1] = 128
        elsewhere[border - 24 : border - 22] = 128
        for weight, row in zip((0.25, 0.5, 0.75), (-1, 0, 1), strict=True):
            soft[border + row] = (1 - weight) * picture[border - 2] + weight * picture[border + 2]
    seam = scores(along, layout).seam
    assert seam > 10
    assert scores(elsewhere, layout).seam < seam / 10
    assert scores(soft.astype(np.uint8), layout).seam < 1


def test_nothing_leaks_where_nothing_else_changed() -> None:
    layout = layout_of("gaps", 4, 256)
    index, scene = layout.changed
    other = layout._replace(scenes=tuple(scene if i == index else one for i, one in enumerate(layout.scenes)))
    before, after = drawn(layout), drawn(other)
    assert change(before, before, layout) == (0, 0)
    found = change(before, after, layout)
    assert found.inside > 20
    assert found.outside == 0
    found = change(before, 255 - before, layout)
    assert found.outside > 20


def test_a_box_alone_on_the_canvas_has_no_outside() -> None:
    layout = layout_of("partition", 1, 256)
    assert layout.boxes == (Box(0, 0, 256, 256),)
    assert math.isnan(change(drawn(layout), drawn(layout), layout).outside)


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_are_what_they_are_called(kind: str) -> None:
    layout = layout_of(kind, 9, 512)
    areas = sum((box.bottom - box.top) * (box.right - box.left) for box in layout.boxes)
    assert all(edge % CELL == 0 for box in layout.boxes for edge in box)
    base_pixels = int((layout.owners() == -1).sum())
    assert {"partition": areas == 512**2, "gaps": areas < 512**2, "overlaps": areas > 512**2}[kind]
    assert (base_pixels > 0) == (kind == "gaps")
    assert layouts(kind, 9, 512, 3)[:1] == layouts(kind, 9, 512, 1), "how many are drawn changes none of them"


def test_methods_draw_the_same_layouts() -> None:
    """The two pictures of a job differ in one prompt; unknown methods are named, and known ones are not refused."""
    layout = layout_of("overlaps", 4, 256)
    one, other = layout.job(20), layout.job(20, second=True)
    differing = [i for i, pair in enumerate(zip(one["regions"], other["regions"], strict=True)) if pair[0] != pair[1]]
    assert differing == [layout.changed[0]]
    known: list[dict[str, Any]] = []
    for method in METHODS:
        reason = refusal(method, layout, 20)
        if reason is None:
            known.append(method.job(layout, 20).model_dump(include={"prompt", "seed", "steps", "width"}))
        else:
            assert reason.startswith("composition: ")
    assert len(known) >= 5
    assert all(job == known[0] for job in known)


@pytest.mark.parametrize("name", ["windows", "margin", "full-steps"])
def test_methods_cost_what_is_planned_for_their_jobs(name: str) -> None:
    """Windows of nine boxes, whose edges are between the multiples and below the least edge of the model."""
    job = next(method for method in METHODS if method.name == name).job(layout_of("gaps", 9, 384), 4)
    assert cost(run_on(open_folder("embedded"), job)) == prepare(job).cost


def test_bars_compare_pairs() -> None:
    """A difference that all layouts share is found, however different these are; one within its error is not."""
    whole: list[dict[str, float]] = [
        dict(zip(FIGURES, (s, s, s, 10 * s, s, 17.0, 1.0), strict=True)) for s in (0.1, 0.5, 0.9)
    ]
    worse = [
        layout | {"seam": layout["seam"] + 0.1, "leak": layout["leak"] + more}
        for layout, more in zip(whole, (0.1, -0.1, 0.05), strict=True)
    ]
    found = bars(worse, whole)
    assert found == {
        "evaluations a step at most 3.0": False,
        "success at least that of whole rows": True,
        "IoU at least that of whole rows": True,
        "seam not higher by more than a standard error": False,
        "leak not higher by more than a standard error": True,
    }
    assert mean([1.0, 3.0, math.nan]) == (2.0, 1.0)
