"""The originals' recorded results, the core tier, one test a case: `python -m tests.conformance` runs them all."""

from __future__ import annotations

from functools import cache

import pytest

from tests.conformance import GOLDENS, Verdict, judge, parts, selected
from tests.conformers import GROUPS
from tests.recordings import Recordings

RECORDINGS = Recordings(GOLDENS)
PARTS = parts(selected(RECORDINGS, "core"), RECORDINGS)


@cache
def _verdicts(part: int) -> dict[str, Verdict]:
    """How the cases went that are drawn together."""
    return {verdict.id: verdict for verdict in judge(PARTS[part], RECORDINGS)}


@pytest.mark.parametrize(
    ("part", "case"),
    [
        pytest.param(number, case["id"], id=case["id"], marks=pytest.mark.xdist_group(f"recordings {number}"))
        for number, part in enumerate(PARTS)
        for case in part
    ],
)
def test_case(part: int, case: str) -> None:
    verdict = _verdicts(part)[case]
    assert verdict.passed, verdict.why


def test_every_group_has_cases() -> None:
    assert {case["group"] for case in RECORDINGS.cases} == set(GROUPS)
