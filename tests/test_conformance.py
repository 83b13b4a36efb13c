"""The originals' recorded results, the core tier, one test a case: `python -m tests.conformance` runs them all."""

from __future__ import annotations

import pytest

from tests.conformance import GOLDENS, judge, selected
from tests.conformers import GROUPS
from tests.recordings import Case, Recordings

RECORDINGS = Recordings(GOLDENS)


@pytest.mark.parametrize("case", selected(RECORDINGS, "core"), ids=lambda case: case["id"])
def test_case(case: Case) -> None:
    verdict = judge(case, RECORDINGS)
    assert verdict.passed, verdict.why


def test_every_group_has_cases() -> None:
    assert {case["group"] for case in RECORDINGS.cases} == set(GROUPS)
