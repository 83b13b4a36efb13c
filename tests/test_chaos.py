"""A short version of `python -m tests.chaos`: some faults, once each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import chaos

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("machine"), pytest.mark.timeout(1500)]


def test_a_few_faults(tmp_path: Path) -> None:
    """One that the run lives through, and one after which the reaper starts it again; tests/test_up.py has others."""
    faults = ["store answers 503", "state truncated"]
    report = tmp_path / "chaos.json"
    assert chaos.main(["--runs", "2", "--faults", ",".join(faults), "--json", str(report)]) == 0
    outcomes = json.loads(report.read_text())
    assert sorted(outcome["fault"] for outcome in outcomes) == sorted(faults)
    assert all(outcome["equal"] for outcome in outcomes)
