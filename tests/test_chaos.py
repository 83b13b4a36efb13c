"""A short version of `python -m tests.chaos`: some faults, once each; and what it takes for a run to count."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from tests import chaos, s3
from tests.chaos_faults import FAULTS
from tests.fault_proxy import FaultProxy, Refusal
from tests.stepped_clock import SteppedClock, can_step

KILLED = chaos.Outcome("run killed", "dpmpp_2m_sde", True, True, 30, 31, 0, 2, 50.0)
DELAYED = chaos.Outcome("store answers 503", "dpmpp_2m_sde", True, True, 30, 0, 0, 1, 50.0)


@pytest.mark.parametrize(
    ("outcome", "counts", "well"),
    [
        (KILLED, True, True),
        (DELAYED, True, True),
        (DELAYED._replace(stored_at_fault=0), True, True),
        # Moments that prove nothing.
        (KILLED._replace(during=False), False, True),
        (KILLED._replace(starts=1, restored=0), False, True),
        (KILLED._replace(stored_at_fault=0, restored=0), False, True),
        (KILLED._replace(fault="state truncated", stored_at_fault=1, restored=0), False, True),
        (DELAYED._replace(during=False), False, True),
        # Moments that prove something bad; a wrong picture is one at any moment.
        (KILLED._replace(restored=0), True, False),
        (KILLED._replace(recomputed=1), True, False),
        (DELAYED._replace(starts=2), True, False),
        (DELAYED._replace(equal=False), True, False),
        (KILLED._replace(equal=False, during=False), False, False),
    ],
)
def test_what_counts_and_what_is_wrong(outcome: chaos.Outcome, counts: bool, well: bool) -> None:
    assert (outcome.counts, outcome.well) == (counts, well)
    assert ("WRONG" in outcome.told()) is not well
    assert ("again" in outcome.told()) is not counts


def test_every_fault_meets_every_job() -> None:
    """Within as many runs as there are pairs; and each fault comes as often as the others in fewer."""
    faults, jobs = list(FAULTS), list(chaos.JOBS)
    all_pairs = {(order.fault, order.job) for order in chaos.orders(len(faults) * len(jobs), faults, 0)}
    assert all_pairs == {(fault, job) for fault in faults for job in jobs}
    assert sorted(order.fault for order in chaos.orders(len(faults), faults, 1)) == sorted(faults)


@pytest.mark.e2e
def test_the_proxy_fails_as_told(tmp_path: Path) -> None:
    with s3.s3_server(tmp_path, "bucket") as port:
        proxy = FaultProxy(port)
        client, key, whole = s3.client(proxy.url), "run/latents/a/00007.safetensors", bytes(range(200))
        client.put_object(Bucket="bucket", Key=key, Body=whole)
        refusals: list[Refusal] = ["RequestTimeTooSkewed", "ExpiredToken", "AccessDenied"]
        for refusal in refusals:
            proxy.fail(refusal)
            with pytest.raises(ClientError) as refused:
                client.put_object(Bucket="bucket", Key=key, Body=b"other")
            assert refused.value.response["Error"]["Code"] == refusal
            assert proxy.met == 1
        proxy.fail("dated")
        assert client.get_object(Bucket="bucket", Key=key)["Body"].read() == whole
        assert proxy.met == 0
        proxy.fail("short", 1)
        assert client.get_object(Bucket="bucket", Key=key)["Body"].read() == whole[:100]
        assert client.get_object(Bucket="bucket", Key=key)["Body"].read() == whole
        proxy.fail("cut")
        with pytest.raises(Exception, match=r"(?i)broken|incomplete"):
            client.get_object(Bucket="bucket", Key=key)["Body"].read()
        proxy.fail("none")
        assert client.get_object(Bucket="bucket", Key=key)["Body"].read() == whole


@pytest.mark.skipif(not can_step(), reason="needs a C compiler")
def test_a_clock_steps_for_those_that_carry_it(tmp_path: Path) -> None:
    """The system clock steps; what measures durations does not."""
    clock = SteppedClock(tmp_path)
    asked = "import time\nwhile input(): print(time.time(), time.monotonic(), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", asked], env=clock.variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for step in (0, 3600, -3600, 0):
            clock.step(step)
            before = time.time(), time.monotonic()
            process.stdin.write("now\n")
            process.stdin.flush()
            system, monotonic = map(float, process.stdout.readline().split())
            assert before[0] <= system - step <= time.time()
            assert before[1] <= monotonic <= time.monotonic()
        process.stdin.write("\n")


@pytest.mark.e2e
@pytest.mark.xdist_group("chaos")
@pytest.mark.timeout(1500)
def test_a_few_faults(tmp_path: Path) -> None:
    """One that the run lives through, and one after which the reaper starts it again; tests/test_up.py has others."""
    faults = ["store answers 403", "reads arrive by half"]
    report = tmp_path / "chaos.json"
    assert chaos.main(["--runs", "2", "--faults", ",".join(faults), "--json", str(report)]) == 0
    outcomes = [outcome for outcome in json.loads(report.read_text()) if outcome["counts"]]
    assert sorted(outcome["fault"] for outcome in outcomes) == sorted(faults)
    assert all(outcome["equal"] for outcome in outcomes)
