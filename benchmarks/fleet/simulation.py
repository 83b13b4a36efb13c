"""A simulated fleet: workers with one GPU each, jobs that arrive, models that must be loaded, machines that die.

Discrete events in simulated seconds. Which run a worker takes is decided by the code that real workers use
(`flows.queueing`, `deployments.affinity`), or by the time of submission alone, as Prefect does.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from statistics import quantiles
from typing import Literal, NamedTuple
from uuid import UUID

from prefect_regional_diffusion.deployments.affinity import Affinity
from prefect_regional_diffusion.flows.queueing.fair_order import fair_order
from prefect_regional_diffusion.flows.queueing.waiting_run import WaitingRun

Policy = Literal["first come", "affinity"]

_POLL = 1.0
"""Seconds after which an idle worker asks again."""

_PAGE = 1000
"""Most runs that a server shows a worker."""


class Job(NamedTuple):
    """A job as it arrives."""

    arrival: float
    owner: str
    model: str
    seconds: float
    """Of drawing it, once its model is there."""


class Fleet(NamedTuple):
    """What the jobs meet."""

    workers: int
    load_seconds: Mapping[str, float]
    """By model."""
    models_held: int = 1
    """Models that fit into a GPU's memory together; the one that was not used for longest makes room."""
    start_seconds: float = 1.0
    """From a worker's choice to a run's first step, on a resident worker."""
    mean_life: float | None = None
    """Seconds after which a machine dies, on average: a crash, or a spot machine that is taken away."""
    repair_seconds: float = 120.0
    """Until a machine that died is there again, without a model; its run waits again, and goes on where it was."""


class Result(NamedTuple):
    """What became of the jobs."""

    waits: tuple[float, ...]
    """Seconds from a job's arrival to its first step, in the order of arrival."""
    turnarounds: tuple[float, ...]
    """Seconds from a job's arrival to its end."""
    loads: int
    deaths: int
    span: float
    """Seconds from the first arrival to the last end."""
    drawing: float
    """GPU seconds in which a job was drawn."""
    idle_share: float
    """Of the GPUs' time in which they neither drew nor loaded."""

    @property
    def jobs_an_hour(self) -> float:
        return 3600 * len(self.waits) / self.span

    def wait(self, percent: int) -> float:
        return quantiles(self.waits, n=100, method="inclusive")[percent - 1]


@dataclass
class _Worker:
    affinity: Affinity
    models: OrderedDict[str, None] = field(default_factory=OrderedDict)
    life: int = 0
    """How often it has died: what was planned for an earlier life does not happen."""
    job: int | None = None
    began: float = 0.0
    """When its job's first step begins, after loading."""
    away: bool = False
    asks: bool = False
    """Whether its next question to the server is planned."""


class _Simulation:
    def __init__(self, fleet: Fleet, jobs: Sequence[Job], policy: Policy, seed: int) -> None:
        self.fleet, self.jobs, self.policy = fleet, jobs, policy
        self.random = random.Random(seed)
        mean_load = sum(fleet.load_seconds.values()) / len(fleet.load_seconds)
        self.workers = [_Worker(Affinity(mean_load)) for _ in range(fleet.workers)]
        self.waiting: OrderedDict[int, WaitingRun] = OrderedDict()
        self.running = Counter[str]()
        self.last_starts: dict[str, float] = {}
        self.left = [job.seconds for job in jobs]
        self.started: dict[int, float] = {}
        self.ended: dict[int, float] = {}
        self.last_ends: dict[str, float] = {}
        self.loads = self.deaths = 0
        self.loading = 0.0
        self.drawing = 0.0
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.numbers = count()

    def at(self, time: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self.events, (time, next(self.numbers), event))

    def run(self) -> Result:
        for number, job in enumerate(self.jobs):
            self.at(job.arrival, lambda now, number=number: self.arrive(number, now))
        for worker in self.workers:
            self.plan_death(worker, 0.0)
        while len(self.ended) < len(self.jobs):
            now, _, event = heapq.heappop(self.events)
            event(now)
        first, last = self.jobs[0].arrival, max(self.ended.values())
        busy = self.drawing + self.loading
        return Result(
            waits=tuple(self.started[number] - job.arrival for number, job in enumerate(self.jobs)),
            turnarounds=tuple(self.ended[number] - job.arrival for number, job in enumerate(self.jobs)),
            loads=self.loads,
            deaths=self.deaths,
            span=last - first,
            drawing=self.drawing,
            idle_share=1 - busy / (self.fleet.workers * (last - first)),
        )

    def arrive(self, number: int, now: float) -> None:
        job = self.jobs[number]
        self.waiting[number] = WaitingRun(UUID(int=number), job.owner, frozenset({job.model}), frozenset(), now)
        for worker in self.workers:
            if worker.job is None:
                self.plan_question(worker, now + self.random.uniform(0, _POLL))

    def plan_question(self, worker: _Worker, time: float) -> None:
        if not worker.asks and not worker.away:
            worker.asks = True
            life = worker.life
            self.at(time, lambda now: self.ask(worker, life, now))

    def ask(self, worker: _Worker, life: int, now: float) -> None:
        if worker.life != life:
            return
        worker.asks = False
        if worker.job is not None or not self.waiting:
            return
        run = self.choose(worker, now)
        if run is None:
            self.plan_question(worker, now + _POLL)
        else:
            self.start(worker, run.id.int, now)

    def choose(self, worker: _Worker, now: float) -> WaitingRun | None:
        shown = [run for _, run in zip(range(_PAGE), self.waiting.values(), strict=False)]
        if self.policy == "first come":
            return shown[0]
        at_work = frozenset(self.jobs[other.job].model for other in self.workers if other.job is not None)
        turns = fair_order(shown, self.running, self.last_starts)
        return worker.affinity.choose(turns, frozenset(worker.models), at_work, self.last_ends, now)

    def start(self, worker: _Worker, number: int, now: float) -> None:
        del self.waiting[number]
        job = self.jobs[number]
        self.running[job.owner] += 1
        self.last_starts[job.owner] = now
        loading = 0.0
        if job.model in worker.models:
            worker.models.move_to_end(job.model)
        else:
            loading = self.fleet.load_seconds[job.model]
            self.loads += 1
            worker.models[job.model] = None
            while len(worker.models) > self.fleet.models_held:
                worker.models.popitem(last=False)
        self.loading += loading
        worker.job, worker.began = number, now + self.fleet.start_seconds + loading
        self.started.setdefault(number, worker.began)
        life = worker.life
        self.at(worker.began + self.left[number], lambda end: self.end(worker, life, end))

    def end(self, worker: _Worker, life: int, now: float) -> None:
        if worker.life != life or worker.job is None:
            return
        self.drawing += self.left[worker.job]
        self.running[self.jobs[worker.job].owner] -= 1
        self.ended[worker.job] = self.last_ends[self.jobs[worker.job].model] = now
        worker.job = None
        # Its models are not at work now, and it has not asked for more yet: others may ask first.
        self.plan_question(worker, now + self.random.uniform(0, _POLL))

    def plan_death(self, worker: _Worker, now: float) -> None:
        if self.fleet.mean_life is not None:
            self.at(now + self.random.expovariate(1 / self.fleet.mean_life), lambda time: self.die(worker, time))

    def die(self, worker: _Worker, now: float) -> None:
        worker.life += 1
        self.deaths += 1
        worker.away, worker.asks = True, False
        worker.models.clear()
        if (number := worker.job) is not None:
            worker.job = None
            drawn = max(0.0, now - worker.began)
            self.left[number] -= drawn
            self.drawing += drawn
            self.running[self.jobs[number].owner] -= 1
            job = self.jobs[number]
            self.waiting[number] = WaitingRun(UUID(int=number), job.owner, frozenset({job.model}), frozenset(), now)
        self.at(now + self.fleet.repair_seconds, lambda time: self.repair(worker, time))

    def repair(self, worker: _Worker, now: float) -> None:
        worker.away = False
        self.plan_death(worker, now)
        self.plan_question(worker, now)


def simulate(fleet: Fleet, jobs: Iterable[Job], policy: Policy, seed: int = 0) -> Result:
    """Jobs, in any order, drawn by a fleet. `seed` decides when machines die and workers ask."""
    return _Simulation(fleet, sorted(jobs, key=lambda job: job.arrival), policy, seed).run()


def arrivals(
    rng: random.Random,
    hours: float,
    an_hour: float,
    models: Mapping[str, float],
    owners: Mapping[str, float],
    seconds: tuple[float, float],
) -> list[Job]:
    """Jobs that arrive independently of each other (exponential gaps).

    Args:
        rng: Decides everything.
        hours: How long jobs arrive.
        an_hour: Jobs an hour.
        models: Their shares of the jobs.
        owners: The same.
        seconds: Least and most seconds of drawing one; uniform.
    """
    jobs, now = list[Job](), 0.0
    while (now := now + rng.expovariate(an_hour / 3600)) < hours * 3600:
        (model,), (owner,) = (rng.choices(list(shares), list(shares.values())) for shares in (models, owners))
        jobs.append(Job(now, owner, model, rng.uniform(*seconds)))
    return jobs
