"""Task: the model into this process' memory, where it stays for the next task and the next run."""

from __future__ import annotations

from prefect import task

from sampling_core.models.folder import ModelFolder, open_folder
from sampling_core.models.loading import Model, load
from tasks.settings import settings

# One at a time: two models of Stable Diffusion's size would not fit on the cards that many people have.
_loaded: dict[str, Model] = {}


@task(task_run_name="load model {model}", persist_result=False)
def load_model(model: str, fingerprint: str) -> None:
    """Load a model folder, once per process; `fingerprint` is what the job was planned with."""
    loaded(open_folder(model), fingerprint)


def loaded(folder: ModelFolder, fingerprint: str) -> Model:
    """The model with these weights, loaded on first use on the device that the settings name."""
    if fingerprint not in _loaded:
        _loaded.clear()
        _loaded[fingerprint] = load(folder, settings().torch_device(), settings().torch_dtype())
    return _loaded[fingerprint]
