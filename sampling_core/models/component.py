"""Components: the kinds of networks that models are made of, each with its class, configuration and weight files.

The libraries are imported when a network is built: it takes seconds, which planning can do without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from prefect_regional_diffusion.sampling_core.models.configurations import NetworkConfiguration
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.loading import NetworkSource
from prefect_regional_diffusion.sampling_core.models.weights import read_headers

C = TypeVar("C", bound=NetworkConfiguration)


class Class(NamedTuple):
    """A library, and those of its classes that a component may be of. `*` stands for any letters."""

    library: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Component(Generic[C]):
    """A kind of network: its class, the stem of its weight files, its configuration, and how it is built."""

    known_as: Class
    stem: str
    configuration: type[C]
    build: Callable[[C], Any]

    def read(self, files: ModelFiles, folder: str) -> C:
        """The configuration in a folder of the model. Raises ModelError."""
        if f"{folder}/adapter_config.json" in files:
            raise files.error(f"has an adapter in its {folder}, which is not read here")
        return self.configuration.read(files, f"{folder}/config.json")

    def source(self, files: ModelFiles, folder: str, configuration: C) -> NetworkSource:
        """The network with what its weight files hold. Reads their headers. Raises ModelError."""
        weights = read_headers(files, folder, self.stem, configuration)
        return NetworkSource(
            files=files,
            part=folder,
            stem=self.stem,
            weights=weights,
            canonical_name=configuration.canonical_name,
            overflows=configuration.overflows,
            buffers=configuration.buffers,
            spare=configuration.SPARE,
            build=lambda: self.build(configuration),
        )


DIFFUSERS_STEM = "diffusion_pytorch_model"
TRANSFORMERS_STEM = "model"
"""Stems of weight files, by the library that writes them."""
