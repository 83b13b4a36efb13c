"""Agreement with the recorded originals: `python -m tests.conformance [DIR] [--tier core|all] [--group NAME]`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from prefect_regional_diffusion.sampling_core.errors import RegionalError
from tests.conformers import GROUPS
from tests.recordings import Case, Recordings, tolerance

GOLDENS = Path(__file__).parent / "goldens"
Conformer = Callable[[Case, Recordings], Tensor]


@dataclass(frozen=True)
class Verdict:
    """How one case went; `error` is the largest difference over the tolerance."""

    id: str
    passed: bool
    error: float
    why: str = ""


def judge(case: Case, recordings: Recordings) -> Verdict:
    """Run one case on our code and compare it with what was recorded."""
    expect = case["expect"]
    refuses = expect["type"] == "raises" or bool(expect.get("swallowed_errors"))
    try:
        result = GROUPS[case["group"]](case, recordings)
    except RegionalError as error:
        return Verdict(case["id"], refuses, 0.0, "" if refuses else f"refused: {error}")
    except Exception as error:  # noqa: BLE001 - any other error is a failed case, and is named
        return Verdict(case["id"], False, 0.0, f"{type(error).__name__}: {error}")
    if refuses:
        return Verdict(case["id"], False, 0.0, "should have been refused")
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dir", nargs="?", type=Path, default=GOLDENS, metavar="DIR", help="recordings")
    parser.add_argument("--tier", choices=["core", "all"], default="all")
    parser.add_argument("--group", action="append", default=[], help="only this group; may be given again")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the verdicts there as well")
    options = parser.parse_args(arguments)
    recordings = Recordings(options.dir)
    by_group: dict[str, list[Verdict]] = {}
    for case in selected(recordings, options.tier, options.group):
        by_group.setdefault(case["group"], []).append(judge(case, recordings))
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
