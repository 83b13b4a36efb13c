"""Which waiting run is next: turns between owners, models that are there, and how long anybody is passed over."""

from __future__ import annotations

import random
from datetime import UTC
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.schemas.objects import FlowRun
from prefect.types._datetime import DateTime

from benchmarks.fleet.simulation import Fleet, Job, arrivals, simulate
from prefect_regional_diffusion.deployments.affinity import (
    HOLD,
    PATIENCE,
    Affinity,
    next_question_seconds,
    question_seconds,
)
from prefect_regional_diffusion.flows.queueing.fair_order import fair_order
from prefect_regional_diffusion.flows.queueing.waiting_run import WaitingRun, waiting_run

LOAD = 10.0
NOTHING = frozenset[str]()
NEVER: dict[str, float] = {}
"""No run has ended."""


def run(number: int, owner: str = "", model: str = "a", due: float | None = None, priority: int = 1) -> WaitingRun:
    when = float(number) if due is None else due
    return WaitingRun(UUID(int=number), owner, frozenset({model}), NOTHING, when, priority)


RUNS = st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 5), st.integers(1, 2)), max_size=20).map(
    lambda rows: [run(number, owner, "a", due, priority) for number, (owner, due, priority) in enumerate(rows)]
)


RUNNING = st.dictionaries(st.sampled_from("xyz"), st.integers(0, 3))
LAST_STARTS = st.dictionaries(st.sampled_from("xyz"), st.floats(0, 10))


@given(RUNS, RUNNING, LAST_STARTS)
def test_everybody_has_a_turn_in_the_order_of_their_own_runs(
    waiting: list[WaitingRun], running: dict[str, int], last_starts: dict[str, float]
) -> None:
    order = fair_order(waiting, running, last_starts)
    assert sorted(order) == sorted(waiting)
    assert [item.priority for item in order] == sorted(item.priority for item in waiting)
    for owner in "xyz":
        own = [item for item in order if item.owner == owner]
        assert own == sorted(own, key=lambda item: (item.priority, item.due, item.id))


@given(RUNS, RUNNING, LAST_STARTS)
def test_nobody_gets_two_runs_more_than_somebody_who_waits(
    waiting: list[WaitingRun], running: dict[str, int], last_starts: dict[str, float]
) -> None:
    order = [item for item in fair_order(waiting, running, last_starts) if item.priority == 1]
    taken = {owner: running.get(owner, 0) for owner in "xyz"}
    for position, item in enumerate(order):
        others = {later.owner for later in order[position + 1 :]} - {item.owner}
        assert all(taken[item.owner] <= taken[other] for other in others)
        taken[item.owner] += 1


def test_five_beside_five_hundred_take_turns() -> None:
    waiting = [run(number, "many") for number in range(500)] + [run(500 + number, "few") for number in range(5)]
    # Nothing is at work: who had the last turn is not the next one.
    for running, last_starts in [({"many": 1}, {}), ({}, {"many": 2.0}), ({}, {"many": 2.0, "few": 1.0})]:
        order = fair_order(waiting, running, last_starts)
        assert [item.owner for item in order[:6]] == ["few", "many"] * 3
    assert fair_order(waiting, {}, {"many": 1.0, "few": 2.0})[0].owner == "many"


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_five_beside_five_hundred_wait_at_most_twice_as_long_as_alone(workers: int) -> None:
    fleet = Fleet(workers, {"a": 15.0})
    many = [Job(0.0, "many", "a", 10.0) for _ in range(500)]
    few = [Job(100.0 + number, "few", "a", 10.0) for number in range(5)]
    warming = [Job(0.0, "few", "a", 10.0) for _ in range(workers)]
    alone = simulate(fleet, warming + few, "affinity").turnarounds[-5:]
    beside = simulate(fleet, many + few, "affinity").turnarounds[-5:]
    # Nobody is thrown out: what is being drawn when they come is drawn to its end.
    assert sum(beside) <= 2 * sum(alone) + 5 * 11


def test_who_holds_nothing_takes_the_first() -> None:
    turns = [run(0, model="b"), run(1, model="a")]
    assert Affinity(LOAD).choose(turns, NOTHING, NOTHING, NEVER, now=0.0) == turns[0]
    assert Affinity(LOAD).choose([], NOTHING, NOTHING, NEVER, now=0.0) is None


def test_a_model_that_is_there_goes_first_for_a_while() -> None:
    worker, held = Affinity(LOAD), frozenset({"a"})
    turns = [run(0, model="b", due=0), run(1, due=1), run(2, due=2)]
    assert worker.choose(turns, held, NOTHING, NEVER, now=100.0) == turns[1]
    assert worker.choose(turns, held, NOTHING, NEVER, now=100.0 + PATIENCE * LOAD - 1) == turns[1]
    assert worker.choose(turns, held, NOTHING, NEVER, now=100.0 + PATIENCE * LOAD) == turns[0]
    # And so for the next one that it passes over.
    turns = [run(3, model="c", due=0), run(4, due=1)]
    assert worker.choose(turns, held, NOTHING, NEVER, now=200.0) == turns[1]


def test_what_came_much_later_does_not_go_first() -> None:
    turns = [run(0, model="b", due=0), run(1, due=PATIENCE * LOAD)]
    assert Affinity(LOAD).choose(turns, frozenset({"a"}), NOTHING, NEVER, now=1000.0) == turns[0]


def test_a_lora_that_is_there_saves_less_than_a_model() -> None:
    plain = run(0)
    styled = run(1)._replace(adapters=frozenset({"style"}))
    other = run(2, model="b")
    held = frozenset({"a", "style"})
    assert Affinity(LOAD).choose([other, styled, plain], held, NOTHING, NEVER, now=9.0) == styled
    # Without the LoRA here, the run that needs none goes first: nothing is loaded for it.
    assert Affinity(LOAD).choose([styled, plain], frozenset({"a"}), NOTHING, NEVER, now=9.0) == plain


@pytest.mark.parametrize(
    ("at_work", "alone", "query_seconds", "seconds"),
    [
        (NOTHING, False, 1.0, question_seconds(1.0)),
        (NOTHING, False, 5.0, question_seconds(5.0)),
        (NOTHING, False, 60.0, LOAD),
        (frozenset({"b"}), False, 1.0, HOLD * LOAD),
        (frozenset({"b"}), True, 1.0, 0.0),
    ],
    ids=["nobody draws with it", "workers ask seldom", "less often than it loads", "somebody does", "nobody else"],
)
def test_a_run_is_left_to_those_who_hold_its_model(
    at_work: frozenset[str], alone: bool, query_seconds: float, seconds: float
) -> None:
    turns, held = [run(0, model="b", due=0)], frozenset({"a"})
    worker = Affinity(LOAD, query_seconds)
    if seconds:
        assert worker.choose(turns, held, at_work, NEVER, now=seconds - 0.1, alone=alone) is None
    assert worker.choose(turns, held, at_work, NEVER, now=seconds, alone=alone) == turns[0]


def test_a_run_is_left_to_who_has_just_drawn_with_its_model() -> None:
    """However long it has waited: that worker is idle now, and has not asked yet."""
    turns, held, worker = [run(0, model="b", due=0)], frozenset({"a"}), Affinity(LOAD)
    end = HOLD * LOAD + 1
    asked = end + next_question_seconds(1.0)
    assert worker.choose(turns, held, NOTHING, {"b": end}, now=asked - 0.1) is None
    assert worker.choose(turns, held, NOTHING, {"b": end}, now=asked) == turns[0]
    assert worker.choose(turns, held, NOTHING, {"a": end}, now=end) == turns[0], "nobody has drawn with this one"


@pytest.mark.parametrize("held", [NOTHING, frozenset({"a"})], ids=["holds nothing", "holds another one"])
def test_who_must_load_does_so_for_a_model_that_nobody_draws_with(held: frozenset[str]) -> None:
    """Several workers would else load one model, each for one of its runs, and give up all others."""
    busy, other = run(0, model="b", due=0), run(1, model="c", due=5)
    late = HOLD * LOAD + 1
    for now in (10.0, late):
        assert Affinity(LOAD).choose([busy, other], held, frozenset({"b"}), NEVER, now=now) == other
    # Nor does what came much later go first here.
    other = other._replace(due=PATIENCE * LOAD)
    later = other.due + question_seconds(1.0)
    assert Affinity(LOAD).choose([busy, other], held, frozenset({"b"}), NEVER, now=later) == busy


def test_what_takes_longer_to_load_does_not_go_first() -> None:
    styled = run(0, model="a")._replace(adapters=frozenset({"style"}))
    other = run(1, model="b")
    late = HOLD * LOAD
    assert Affinity(LOAD).choose([styled, other], frozenset({"a"}), frozenset({"a"}), NEVER, now=late) == styled


@pytest.mark.parametrize(
    ("parameters", "models", "adapters"),
    [
        ({}, set[str](), set[str]()),
        ({"job": {"prompt": "x"}}, {"embedded"}, set[str]()),
        ({"job": {"model": "m", "regions": [{"model": "n"}, {"loras": [{"file": "l"}]}]}}, {"m", "n"}, {"l"}),
        ({"job": {"model": "m", "refiner": {"model": "r"}, "controls": [{"file": "c"}]}}, {"m", "r"}, {"c"}),
        (
            {"jobs": [{"name": "1", "job": {"model": "m"}}, {"name": "2", "job": {"model": "n"}}]},
            {"m", "n"},
            set[str](),
        ),
        ({"job": {"job": {"model": "m"}, "rows": 2}}, {"m"}, set[str]()),
        ({"job": {"model": 3, "regions": 5, "loras": [7, {"file": None}]}, "jobs": "no"}, {"3"}, set[str]()),
        ({"job": "no job at all"}, set[str](), set[str]()),
    ],
    ids=["none", "silent", "regions", "refiner", "shard", "grid", "nonsense", "text"],
)
def test_what_a_run_loads_is_in_its_parameters(
    parameters: dict[str, Any], models: set[str], adapters: set[str]
) -> None:
    due = DateTime(2026, 1, 1, tzinfo=UTC)
    flow_run = FlowRun(flow_id=uuid4(), parameters=parameters, tags=["regional", "owner:ann"], expected_start_time=due)
    waiting = waiting_run(flow_run, priority=2)
    assert (waiting.models, waiting.adapters) == (models, adapters)
    assert (waiting.owner, waiting.due, waiting.priority) == ("ann", due.timestamp(), 2)


SMALL = Fleet(4, dict.fromkeys("abcd", 15.0))


def test_one_simulated_worker_draws_one_after_the_other() -> None:
    jobs = [Job(0.0, "x", "a", 10.0), Job(0.0, "x", "a", 10.0), Job(100.0, "x", "b", 10.0)]
    result = simulate(Fleet(1, dict.fromkeys("ab", 15.0)), jobs, "first come")
    assert result.loads == 2
    assert result.drawing == pytest.approx(30)
    first, second, third = result.waits
    assert 16 <= first < 17.1
    assert first + 11 <= second <= first + 12
    assert 16 <= third < 17.1


def test_a_fleet_loads_a_third_of_what_first_come_loads_and_nobody_waits_longer() -> None:
    for share in (0.4, 0.7):
        mix = dict.fromkeys("abcd", 0.25)
        jobs = arrivals(random.Random(5), 2, 4 * 360 * share, mix, {"x": 1.0}, (5.0, 15.0))
        first_come, near = (simulate(SMALL, jobs, policy) for policy in ("first come", "affinity"))
        assert near.loads <= first_come.loads / 3
        assert near.wait(99) <= 1.5 * first_come.wait(99)


def test_what_machines_lose_is_drawn_all_the_same() -> None:
    jobs = arrivals(random.Random(6), 1, 400, {"a": 1.0}, {"x": 1.0}, (5.0, 15.0))
    result = simulate(SMALL._replace(mean_life=300.0), jobs, "affinity")
    assert result.deaths > 10
    # A job goes on where it was: every second of it is drawn once.
    assert result.drawing == pytest.approx(sum(job.seconds for job in jobs))


def test_a_rare_model_is_not_starved() -> None:
    common = [Job(number * 3.4, "x", "a", 10.0) for number in range(1000)]
    rare = [Job(300.0 + number * 500, "x", "b", 10.0) for number in range(5)]
    result = simulate(SMALL, common + rare, "affinity")
    order = sorted(common + rare, key=lambda job: job.arrival)
    waits = [wait for wait, job in zip(result.waits, order, strict=True) if job.model == "b"]
    # Overtaken for six load times, and then a drawing that is under way, a load and a start.
    assert max(waits) <= PATIENCE * 15 + 10 + 15 + 2 + max(result.waits[:50])
