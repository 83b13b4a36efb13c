"""A short version of `python -m tests.chaos`: some faults, once each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import chaos

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("machine"), pytest.mark.timeout(1500)]


def test_a_few_faults(tmp_path: Path) -> None:
    """Those whose recovery does not wait for the reaper's patience, and one that does."""
    faults = ["SIGTERM", "store answers 503", "state truncated"]
    report = tmp_path / "chaos.json"
    assert chaos.main(["--runs", "3", "--faults", ",".join(faults), "--json", str(report)]) == 0
    outcomes = json.loads(report.read_text())
    assert sorted(outcome["fault"] for outcome in outcomes) == sorted(faults)
    assert all(outcome["equal"] for outcome in outcomes)
