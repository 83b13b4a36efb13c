"""Run: the small JSON value that tasks hand to each other. It holds keys, never tensors."""

from __future__ import annotations

from functools import cached_property
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, ConfigDict

from sampling_core._types import Embedding
from sampling_core.composition import Composition
from sampling_core.errors import StoreError
from sampling_core.job import RenderJob
from sampling_core.meaning import content_hash
from sampling_core.models.folder import ModelFolder, open_folder
from sampling_core.plan import compose
from tasks.preparing import FORMAT
from tasks.settings import settings
from tasks.store import Store


class Run(BaseModel):
    """One job on one model with one store: enough to go on with the work on any machine."""

    model_config = ConfigDict(frozen=True)
    job: RenderJob
    job_hash: str
    mask_hash: str
    model_fingerprint: str
    numerics: str
    """What bits depend on beside the job: kind of device, type of numbers, versions of the libraries."""
    store_url: str

    @property
    def latents(self) -> str:
        """Key prefix of the run's latents: everything that determines them."""
        return f"latents/{content_hash([FORMAT, self.job_hash, self.numerics])}"

    @cached_property
    def store(self) -> Store:
        return Store(self.store_url)

    @cached_property
    def folder(self) -> ModelFolder:
        return open_folder(self.job.model)

    @cached_property
    def composition(self) -> Composition[Any]:
        """The run itself, with masks from the store. Raises StoreError if they are not there."""
        found = self.store.read_tensors(mask_key(self.mask_hash))
        if found is None:
            raise StoreError("store", self.store_url, f"a store that still has {mask_key(self.mask_hash)}")
        masks = [found[f"{i}"] for i in range(len(self.job.drawn_masks()))]
        folder = self.folder
        return compose(self.job, folder.levels, folder.latent_channels, folder.cell, masks)

    def prompt_key(self, prompt: str) -> str:
        """Key of an encoded prompt."""
        return f"prompts/{content_hash([FORMAT, self.model_fingerprint, self.numerics, prompt])}"

    def embeddings(self) -> dict[str, Embedding]:
        """All encoded prompts of the run. Raises StoreError if one is not there."""
        encoded: dict[str, Embedding] = {}
        for prompt in self.composition.prompts:
            tensors = self.store.read_tensors(self.prompt_key(prompt))
            if tensors is None:
                raise StoreError("store", self.store_url, f"a store that still has {self.prompt_key(prompt)}")
            encoded[prompt] = tensors["embedding"]
        return encoded


def numerics() -> str:
    """The numerics of this machine, as part of keys."""
    device = settings().torch_device().partition(":")[0]
    libraries = " ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    return f"{device} {settings().torch_dtype()} {libraries}"


def mask_key(mask_hash: str) -> str:
    """Key of the masks of all regions, on the latent lattice."""
    return f"masks/{mask_hash}"
