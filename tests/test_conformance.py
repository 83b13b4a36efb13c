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


def test_what_goes_wrong_is_told_of_its_case_and_of_no_other() -> None:
    short = (case for case in PARTS[-1] if case["group"] == "node" and case["params"].get("steps", 99) <= 4)
    whole = next(case for case in short if case["params"].get("base_only_steps"))  # else its base may draw nothing
    base = whole["samplers"][whole["base_sampler"]]
    dearer = whole | {"stats": {"unet_calls": 1, "unet_elements": 2}}
    another = whole | {"samplers": whole["samplers"] | {whole["base_sampler"]: base | {"cfg": base["cfg"] + 1}}}
    broken = whole | {"samplers": whole["samplers"] | {whole["base_sampler"]: base | {"positive": "not encoded"}}}
    verdicts = judge([dearer, whole, broken, another], RECORDINGS)
    assert [verdict.passed for verdict in verdicts] == [False, True, False, False]
    assert "forwards, recorded 1" in verdicts[0].why
    assert "not encoded" in verdicts[2].why
    assert "x tolerance" in verdicts[3].why
