"""A job is read and checked without torch: help, mistakes and forms should not wait for it."""

from __future__ import annotations

import subprocess
import sys

from tests.processes import ROOT

CORE = "prefect_regional_diffusion.sampling_core"
MODULES = [
    *(f"{CORE}.job.{file.stem}" for file in sorted((ROOT / "sampling_core" / "job").glob("*.py"))),
    *(f"{CORE}.{name}" for name in ("names", "errors", "hashing", "masks.image_fitting")),
]
CODE = """
import sys
from importlib import import_module
for module in sys.argv[1:]:
    import_module(module.removesuffix(".__init__"))
    if "torch" in sys.modules:
        sys.exit(f"{module} imports torch")
"""


def imported(*modules: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: this one has torch already."""
    return subprocess.run([sys.executable, "-c", CODE, *modules], capture_output=True, text=True, check=False)


def test_the_models_of_a_job_import_no_torch() -> None:
    done = imported(*MODULES)
    assert (done.returncode, done.stderr) == (0, "")
    assert imported(f"{CORE}.solvers").stderr.strip() == f"{CORE}.solvers imports torch"
