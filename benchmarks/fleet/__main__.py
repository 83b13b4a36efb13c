"""A fleet's day, on real workers and simulated: `python -m benchmarks.fleet [--json FILE]`.

Each mix of jobs is drawn twice by as many workers: as Prefect hands runs out (`first come`), and as ours take them
(`affinity`: turns between owners, and models that are there). Times of loading and drawing are those of Stable
Diffusion XL and FLUX.1 on one GPU, in round numbers; they are not measured here.

- `workers`: four models in equal parts on four real workers of each kind, side by side on one server; one process of
  each is killed, one worker of each taken away. Beside it the same jobs simulated, with the seconds measured there
- `mix`: four models in equal parts on four GPUs, at four loads. Share 1.0 is what they could draw without ever loading
- `rare`: one model, and another one in 3 of 100 jobs
- `fairness`: somebody with 5 jobs beside somebody with 500; and the 5 alone, on GPUs that are as warm
- `fleet`: 64 GPUs, models of three sizes, seven owners, machines that crash or are taken away
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.fleet.on_workers import on_workers
from benchmarks.fleet.simulation import Fleet, Job, Policy, Result, arrivals, simulate

POLICIES: tuple[Policy, ...] = ("first come", "affinity")
LOAD_SECONDS = {"sdxl": 15.0, "flux": 40.0}
DRAW_SECONDS = (5.0, 15.0)


def workers(number: int, jobs: int) -> dict[str, Any]:
    """Four models on real workers, at 40 % of what they could draw without ever loading."""
    models: dict[str, float] = dict.fromkeys("abcd", 0.25)
    an_hour = number * 3600 / mean(DRAW_SECONDS) * 0.4
    mix = arrivals(random.Random(5), 2 * jobs / an_hour, an_hour, models, {"anybody": 1.0}, DRAW_SECONDS)[:jobs]
    results = dict[str, Any]()
    for policy, compared in on_workers(mix, number, LOAD_SECONDS["sdxl"]).items():
        results[policy] = figures(compared.measured)
        results[f"{policy}, simulated"] = figures(compared.simulated)
        results[f"{policy}, a run's own seconds"] = {
            "before its first step": round(compared.start_seconds, 2),
            "after its last step": round(compared.end_seconds, 2),
        }
    return results


def figures(result: Result) -> dict[str, float]:
    return {
        "jobs": len(result.waits),
        "loads": result.loads,
        "deaths": result.deaths,
        "jobs_an_hour": round(result.jobs_an_hour, 1),
        "idle_share": round(result.idle_share, 3),
        "wait_p50": round(result.wait(50), 1),
        "wait_p99": round(result.wait(99), 1),
        "wait_max": round(max(result.waits), 1),
    }


def both(fleet: Fleet, jobs: list[Job]) -> dict[str, Any]:
    return {policy: figures(simulate(fleet, jobs, policy)) for policy in POLICIES}


def mix(load_seconds: float, share: float) -> dict[str, Any]:
    """Four models, four GPUs."""
    models: dict[str, float] = dict.fromkeys("abcd", 0.25)
    an_hour = 4 * 3600 / mean(DRAW_SECONDS) * share
    jobs = arrivals(random.Random(1), 6, an_hour, models, {"anybody": 1.0}, DRAW_SECONDS)
    return both(Fleet(4, dict.fromkeys(models, load_seconds)), jobs)


def rare() -> dict[str, Any]:
    """How long the runs of a model wait that hardly anybody asks for, beside 60 % of what four GPUs can draw."""
    models = {"common": 0.97, "rare": 0.03}
    jobs = arrivals(random.Random(2), 24, 4 * 360 * 0.6, models, {"anybody": 1.0}, DRAW_SECONDS)
    fleet = Fleet(4, dict.fromkeys(models, LOAD_SECONDS["sdxl"]))
    waits = dict[str, Any]()
    for policy in POLICIES:
        result = simulate(fleet, jobs, policy)
        of_rare = [wait for wait, job in zip(result.waits, jobs, strict=True) if job.model == "rare"]
        waits[policy] = {
            "wait_median": round(sorted(of_rare)[len(of_rare) // 2], 1),
            "wait_max": round(max(of_rare), 1),
        }
    return waits


def fairness() -> dict[str, Any]:
    """Seconds from arrival to end, on average, of 5 jobs that come a minute after somebody's 500."""
    rng = random.Random(3)
    many = [Job(0.0, "many", "a", rng.uniform(*DRAW_SECONDS)) for _ in range(500)]
    few = [Job(60.0 + number / 10, "few", "a", rng.uniform(*DRAW_SECONDS)) for number in range(5)]
    warming = [Job(0.0, "nobody", "a", 1.0) for _ in range(4)]
    fleet = Fleet(4, {"a": LOAD_SECONDS["sdxl"]})
    alone = mean(simulate(fleet, warming + few, "affinity").turnarounds[-5:])
    beside = {policy: mean(simulate(fleet, many + few, policy).turnarounds[-5:]) for policy in POLICIES}
    return {"alone": round(alone, 1)} | {policy: round(seconds, 1) for policy, seconds in beside.items()}


def fleet() -> dict[str, Any]:
    """64 GPUs for six hours at 70 % of what they could draw without loading or dying."""
    models = {"sdxl-a": 0.3, "sdxl-b": 0.2, "sdxl-c": 0.1, "sd15": 0.15, "flux-a": 0.15, "flux-b": 0.07, "flux-c": 0.03}
    loads = {name: LOAD_SECONDS.get(name.partition("-")[0], 5.0) for name in models}
    owners = {"studio": 0.5, "farm": 0.2} | {f"person-{number}": 0.06 for number in range(5)}
    an_hour = 64 * 3600 / mean(DRAW_SECONDS) * 0.7
    jobs = arrivals(random.Random(4), 6, an_hour, models, owners, DRAW_SECONDS)
    return both(Fleet(64, loads, mean_life=4 * 3600), jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--workers", type=int, default=4, help="real ones of each kind; 0: simulate alone [4]")
    parser.add_argument("--jobs", type=int, default=120, help="for the real workers [120]")
    arguments = parser.parse_args()
    results = dict[str, Any]()
    if arguments.workers:
        results[f"{arguments.workers} real workers"] = workers(arguments.workers, arguments.jobs)
    results |= {
        f"mix of 4 on 4, {name} loads in {seconds:.0f} s, share {share}": mix(seconds, share)
        for name, seconds in LOAD_SECONDS.items()
        for share in (0.25, 0.4, 0.55, 0.75)
    }
    results |= {"a rare model": rare(), "5 jobs beside 500, seconds to their end": fairness(), "64 GPUs": fleet()}
    for name, result in results.items():
        print(name)
        for key, value in result.items():
            row = (
                value
                if not isinstance(value, dict)
                else ", ".join(f"{word} {number}" for word, number in value.items())
            )
            print(f"  {key}: {row}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
