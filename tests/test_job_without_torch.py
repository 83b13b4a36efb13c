"""A job is read and checked without torch: help, mistakes and forms should not wait for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

MODULES = [
    *("job", "grid_job", "parsing", "job_fields", "original_node", "shapes", "composing"),
    *("fields", "field_types", "spellings", "names", "fitting", "errors", "hashing"),
]


@pytest.mark.parametrize(
    "module", ["prefect_regional_diffusion.sampling_core.solvers", *(f"sampling_core.{name}" for name in MODULES)]
)
def test_the_models_of_a_job_import_no_torch(module: str) -> None:
    # In a process of its own: this one has torch already.
    code = f"import sys, {module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(module == "prefect_regional_diffusion.sampling_core.solvers")
