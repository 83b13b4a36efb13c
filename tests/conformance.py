"""Agreement with the recorded originals: `python -m tests.conformance [DIR] [--tier core|all] [--group NAME]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from prefect_regional_diffusion.sampling_core.comfyui.sequential_run import SequentialSamplingRun
from prefect_regional_diffusion.sampling_core.errors import RegionalError
from tests.conformers import GROUPS
from tests.conformers.passes import context, dearer_than_recorded
from tests.drawn_together import Drawn, drawn_together
from tests.recordings import SCALING, Case, Recordings, tolerance

GOLDENS = Path(__file__).parent / "goldens"
TOGETHER = 256
"""Cases whose runs share forwards: the more, the fewer forwards of the few that take the most steps."""


@dataclass(frozen=True)
class Verdict:
    """How one case went; `error` is the largest difference over the tolerance."""

    id: str
    passed: bool
    error: float
    why: str = ""


def judge(cases: Sequence[Case], recordings: Recordings) -> list[Verdict]:
    """Run cases on our code, those with a network together, and compare them with what was recorded."""
    outcomes = [_outcome(case, recordings) for case in cases]
    runs = [outcome for outcome in outcomes if isinstance(outcome, SequentialSamplingRun)]
    drawn = iter(drawn_together(runs, context(recordings)) if runs else ())
    return [
        _verdict(case, next(drawn) if isinstance(outcome, SequentialSamplingRun) else outcome, recordings)
        for case, outcome in zip(cases, outcomes, strict=True)
    ]


def _outcome(case: Case, recordings: Recordings) -> Tensor | SequentialSamplingRun | Exception:
    try:
        return GROUPS[case["group"]](case, recordings)
    except Exception as error:  # noqa: BLE001 - that it is refused may be right; any other error is a failed case
        return error


def _verdict(case: Case, result: Tensor | Drawn | Exception, recordings: Recordings) -> Verdict:
    expect = case["expect"]
    refuses = expect["type"] == "raises" or bool(expect.get("swallowed_errors"))
    if isinstance(result, RegionalError):
        return Verdict(case["id"], refuses, 0.0, "" if refuses else f"refused: {result}")
    if isinstance(result, Exception):
        return Verdict(case["id"], False, 0.0, f"{type(result).__name__}: {result}")
    if refuses:
        return Verdict(case["id"], False, 0.0, "should have been refused")
    if isinstance(result, Drawn):
        if why := dearer_than_recorded(case, result.count):
            return Verdict(case["id"], False, 0.0, why)
        result = result.latents / SCALING
    recorded = recordings.expected(case)
    if result.shape != recorded.shape:
        return Verdict(case["id"], False, 0.0, f"shape {tuple(result.shape)}, recorded {tuple(recorded.shape)}")
    if not bool((result.isfinite() == recorded.isfinite()).all()):
        return Verdict(case["id"], False, 0.0, "other cells are not finite")
    finite = recorded.isfinite()
    worst = float((result - recorded)[finite].abs().max()) if bool(finite.any()) else 0.0
    error = worst / tolerance(case)
    return Verdict(case["id"], error <= 1, error, "" if error <= 1 else f"{worst:.3g} off, {error:.3g} x tolerance")


def selected(recordings: Recordings, tier: str, groups: Sequence[str] = ()) -> list[Case]:
    """The cases of a tier and some groups (none: all); only `node` cases have a tier, others belong to both."""
    return [
        case
        for case in recordings.cases
        if (not groups or case["group"] in groups) and (tier == "all" or case.get("tier", "core") == "core")
    ]


def parts(cases: Sequence[Case], recordings: Recordings) -> list[list[Case]]:
    """All cases, so many of like canvases together that their runs fill forwards."""

    def canvas(case: Case) -> list[int]:
        latent = case.get("latent", "")
        name = latent["samples"] if isinstance(latent, dict) else latent
        return list(recordings.latent(name).shape[2:]) if name else []

    ordered = sorted(cases, key=canvas)
    return [ordered[at : at + TOGETHER] for at in range(0, len(ordered), TOGETHER)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dir", nargs="?", type=Path, default=GOLDENS, metavar="DIR", help="recordings")
    parser.add_argument("--tier", choices=["core", "all"], default="all")
    parser.add_argument("--group", action="append", default=[], help="only this group; may be given again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts there as well")
    options = parser.parse_args(arguments)
    recordings = Recordings(options.dir)
    by_group: dict[str, list[Verdict]] = {}
    for part in parts(selected(recordings, options.tier, options.group), recordings):
        for case, verdict in zip(part, judge(part, recordings), strict=True):
            by_group.setdefault(case["group"], []).append(verdict)
    for group, verdicts in by_group.items():
        failures = [verdict for verdict in verdicts if not verdict.passed]
        worst = max(verdict.error for verdict in verdicts)
        print(f"{group:20} {len(verdicts) - len(failures)}/{len(verdicts)}  worst error / tolerance {worst:.2f}")
        for verdict in failures:
            print(f"  {verdict.id}: {verdict.why}")
    if options.json:
        report = {group: [vars(verdict) for verdict in verdicts] for group, verdicts in by_group.items()}
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if by_group and all(v.passed for verdicts in by_group.values() for v in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
