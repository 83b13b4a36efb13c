"""The time series that a worker exposes, and what its runs tell, added to them.

Labels have few values, all known beforehand: every series is there, at zero, from the worker's start.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from prefect_regional_diffusion.flows.common.spent_time import PARTS, WRITE

M = TypeVar("M", Counter, Histogram)

ENDS = ("finished", "failed", "interrupted")
"""How a start of a run can end."""

MODEL_PARTS = ("text_encoder", "denoiser", "autoencoder", "control", "lora")

_GIB = 1 << 30
_SIZES = tuple(size * _GIB for size in (0.5, 1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 80, 96, 144, 192))
_WAITS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200)


class _Declared(NamedTuple):
    """What a metric is, and its own label with all values; beside that, each has the label `pool`."""

    help: str
    label: str = ""
    values: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, list[str]]:
        """Of a metric's constructor, after the name: help and names of labels."""
        return self.help, ["pool", *([self.label] if self.label else [])]


_COUNTERS = {
    "pictures": _Declared(
        "Pictures, by what became of them in a start of a run; found: it was in the store, and nothing was computed",
        "outcome",
        ("finished", "found", "failed", "interrupted"),
    ),
    "runs": _Declared(
        "Starts of runs that have ended; interrupted: killed, cancelled, or handed back to the queue", "outcome", ENDS
    ),
    "steps": _Declared("Steps of pictures; restored: they were in the store", "source", ("computed", "restored")),
    "evaluations": _Declared("Rows that networks have evaluated"),
    "canvas_evaluations": _Declared("Evaluations where a row that shows a part of the canvas is its share of one"),
    "forwards": _Declared("Calls of networks, each of which evaluates one row or many"),
    "sampling_seconds": _Declared("Time in which steps were computed: GPU time, where there is a GPU"),
    "work_seconds": _Declared("Time of runs, by what they did", "part", (*PARTS, WRITE)),
    "model_loads": _Declared("Parts of models and LoRAs that runs read into memory", "part", MODEL_PARTS),
    "model_load_seconds": _Declared("Time in which runs read parts of models and LoRAs", "part", MODEL_PARTS),
    "model_hits": _Declared("Parts of models and LoRAs that runs found in memory", "part", MODEL_PARTS),
}
_HISTOGRAMS = {
    "queue_wait_seconds": (_Declared("From the time when a run was due to its first start"), _WAITS),
    "run_peak_memory_bytes": (
        _Declared("The most memory that the process of a run had during it", "memory", ("host", "gpu")),
        _SIZES,
    ),
}


class Series:
    """The series of one worker, by what runs call them (`tasks.machine.metrics`) and their own label. Thread-safe."""

    def __init__(self, pool: str) -> None:
        self.registry = CollectorRegistry()
        self._pool = pool
        self._counters = {
            name: self._of(Counter(f"regional_{name}", *declared.arguments, registry=self.registry), declared)
            for name, declared in _COUNTERS.items()
        }
        self._histograms = {
            name: self._of(
                Histogram(f"regional_{name}", *declared.arguments, buckets=buckets, registry=self.registry), declared
            )
            for name, (declared, buckets) in _HISTOGRAMS.items()
        }
        in_progress = Gauge("regional_runs_in_progress", "Runs that draw now", ["pool"], registry=self.registry)
        self.runs_in_progress = in_progress.labels(pool)

    def _of(self, metric: M, declared: _Declared) -> dict[str, M]:
        """The series of a metric by its own label's value; empty: it has no label of its own."""
        if not declared.label:
            return {"": metric.labels(self._pool)}
        return {value: metric.labels(self._pool, value) for value in declared.values}

    def add(self, name: str, label: str, value: float) -> bool:
        """Count or observe a value that is not negative; False where there is no such series."""
        counter = self._counters.get(name, {}).get(label)
        histogram = self._histograms.get(name, {}).get(label)
        if counter is not None:
            counter.inc(value)
        elif histogram is not None:
            histogram.observe(value)
        return counter is not None or histogram is not None
