"""Means over layouts with their standard errors, the bars, and the tables that are printed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.layouts.methods import Measured

FIGURES = ("success", "IoU", "background", "seam", "leak", "evaluations", "seconds")


class Figure(NamedTuple):
    """A mean with its standard error; both are NaN where nothing was measured."""

    mean: float
    error: float


def values(measured: Measured) -> dict[str, float]:
    """The figures of one layout; the leak is of the change inside."""
    success, iou, background, seam = measured.scores
    inside, outside = measured.change
    leak = outside / inside if inside else math.nan
    all_values = (success, iou, background, seam, leak, measured.evaluations, measured.seconds)
    return dict(zip(FIGURES, all_values, strict=True))


def figures(of_layouts: Sequence[dict[str, float]]) -> dict[str, Figure]:
    """The figures of one method over several layouts."""
    return {name: mean(layout[name] for layout in of_layouts) for name in FIGURES}


def mean(of_layouts: Iterable[float]) -> Figure:
    """The mean of what was measured, with its standard error."""
    known = np.array([value for value in of_layouts if not math.isnan(value)])
    if not known.size:
        return Figure(math.nan, math.nan)
    return Figure(float(known.mean()), float(known.std(ddof=1) / known.size**0.5) if known.size > 1 else math.nan)


def bars(windows: Sequence[dict[str, float]], whole: Sequence[dict[str, float]]) -> dict[str, bool]:
    """Which bars windows pass, beside whole rows of the same layouts; differences have the error of their pairs."""
    passed = {"evaluations a step at most 3.0": mean(layout["evaluations"] for layout in windows).mean <= 3.0}
    for name in ("success", "IoU"):
        passed[f"{name} at least that of whole rows"] = _difference(name, windows, whole).mean >= 0
    for name in ("seam", "leak"):
        difference = _difference(name, windows, whole)
        passed[f"{name} not higher by more than a standard error"] = not difference.mean > difference.error
    return passed


def _difference(name: str, ones: Sequence[dict[str, float]], others: Sequence[dict[str, float]]) -> Figure:
    return mean(one[name] - other[name] for one, other in zip(ones, others, strict=True))


def table(title: str, of_methods: dict[str, dict[str, Figure]]) -> str:
    """One line for each method."""
    lines = [f"{title:28}" + "".join(f"{name:>16}" for name in FIGURES)]
    for method, of_method in of_methods.items():
        written = (f"{mean:.3f} +-{error:.3f}" if error > 0 else f"{mean:.3f}" for mean, error in of_method.values())
        lines.append(f"{method:28}" + "".join(f"{text:>16}" for text in written))
    return "\n".join(lines)
