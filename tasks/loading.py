"""Task: the model into this process' memory."""

from __future__ import annotations

from prefect import task

from sampling_core.models.folder import open_folder
from tasks.models import loaded


@task(task_run_name="load model {model}")
def load_model(model: str) -> str:
    """Load a model folder (once per process) and return the fingerprint of its weights."""
    folder = open_folder(model)
    loaded(folder)
    return folder.fingerprint()
