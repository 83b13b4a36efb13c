"""A run that is killed and started again, beside one that is left in peace."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

from PIL import Image

from tests.forked import Forked, render_json
from tests.processes import regional


def kill_and_render_again(job: Path, states: int, undisturbed: dict[str, Any], cwd: Path, env: dict[str, str]) -> None:
    """Kill a run when `states` states are in its store, start it again, and compare with the undisturbed record."""
    store = cwd / "store"
    arguments = [job, "--chunk", 2, "--out", "again", "--store", store]
    victim = Forked(regional("render", *arguments), cwd=cwd, env=env)
    deadline = time.monotonic() + 120
    while len(list(store.glob("latents/*/*.safetensors"))) < states and time.monotonic() < deadline:
        if victim.poll() is not None:
            break
        time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL, "it was done before it could be killed"
    stored = len(list(store.glob("latents/*/*.safetensors")))
    assert stored >= states

    record = render_json(arguments, cwd, env)
    assert (record["steps_restored"] > 0) == (stored > 0)
    assert record["steps_restored"] + record["steps_computed"] == undisturbed["steps_computed"]
    with Image.open(undisturbed["images"][0]) as first, Image.open(cwd / record["images"][0]) as second:
        assert first.tobytes() == second.tobytes()
