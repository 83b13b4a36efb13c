"""A diffusers folder: its index, its components, and what all families do with their files in the same way."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar

from pydantic import Field

from prefect_regional_diffusion.sampling_core.models.compiling import compiled
from prefect_regional_diffusion.sampling_core.models.component import Class
from prefect_regional_diffusion.sampling_core.models.conditioning import Conditioning
from prefect_regional_diffusion.sampling_core.models.configurations import Configuration
from prefect_regional_diffusion.sampling_core.models.control_file import ControlFile
from prefect_regional_diffusion.sampling_core.models.family import Part, SizeConditioning
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.ip_adapter_file import IPAdapter
from prefect_regional_diffusion.sampling_core.models.loading import (
    NetworkSource,
    check_network,
    load_network,
    network_bytes,
)
from prefect_regional_diffusion.sampling_core.models.lora_file import Lora, open_lora
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.tensor_info import Weights
from prefect_regional_diffusion.sampling_core.models.textual_inversion import Embeddings
from prefect_regional_diffusion.sampling_core.names import PromptSyntax

INDEX = "model_index.json"
Library = Annotated[list[str | None], Field(min_length=2, max_length=2)]
"""Library and class of a component; both null if the model has none."""


class ModelIndex(Configuration):
    """The components of a model. A component that no family declares is never loaded, whatever class it names."""

    NOTES: ClassVar[frozenset[str]] = frozenset({"_diffusers_version", "_name_or_path"})

    scheduler: Library

    def has(self, component: str) -> bool:
        """Whether the model has this component."""
        return getattr(self, component)[1] is not None


SCHEDULER = Class("diffusers", ("*Scheduler",))
"""Any: it is read for its numbers alone, and never loaded."""
CLIP_TOKENIZER = Class("transformers", ("CLIPTokenizer", "CLIPTokenizerFast"))
SCHEDULER_FILES = ("scheduler_config.json",)
"""Files of the scheduler's folder that are read."""


def check_classes(index: ModelIndex, files: ModelFiles, known_classes: Mapping[str, Class]) -> None:
    """Raise ModelError for a component of another class than is known here, or from another library.

    An index may name any class, and code of its own: `known_classes` are all that are loaded, by field of the index.
    """
    for name, (library, classes) in known_classes.items():
        component = getattr(index, name)
        class_name = component[1] or ""
        fits = component[0] == library and any(fnmatchcase(class_name, one) for one in classes)
        if not fits or not class_name.isidentifier():
            expected = f"{library} {' or '.join(classes)}"
            raise files.error(
                f"has a {name} that is {component}, not {expected} (code that comes with a model is not run)"
            )


@dataclass(frozen=True)
class DiffusersFolder:
    """A checked folder: what its weight files hold, by folder of a component. Families derive from it."""

    PARTS: ClassVar[Mapping[Part, tuple[str, ...]]]
    """The folders of each part; optional ones that a model lacks are skipped."""
    READ: ClassVar[Mapping[str, tuple[str, ...]]]
    """Files that are read beside weights and their configurations, by folder."""

    path: Path
    files: ModelFiles
    networks: Mapping[str, NetworkSource]

    @property
    def numbers(self) -> int:
        """Numbers in all weights."""
        return sum(prod(info.shape) for network in self.networks.values() for info in network.weights.values())

    def fingerprint(self) -> str:
        """SHA-256 over everything that is read: two folders with the same one draw the same pictures."""
        sha256 = hashlib.sha256()
        for name in self._hashed_files():
            sha256.update(f"{name} ".encode())
            sha256.update(self.files.digest(name))
        return sha256.hexdigest()

    def _hashed_files(self) -> list[str]:
        """The files that determine pictures: weights and configurations, but no other variants, and no notes."""
        names = {f"{folder}/{name}".lstrip("/") for folder, file_names in self.READ.items() for name in file_names}
        for folder, network in self.networks.items():
            stem = f"{folder}/{network.stem}.safetensors"
            names |= {f"{folder}/config.json", stem, f"{stem}.index.json"}
            names |= {info.file for info in network.weights.values()}
        return sorted((name for name in names if name in self.files), key=PurePosixPath)

    def chunks(self, prompt: str | None, syntax: PromptSyntax, embeddings: Embeddings) -> int:
        """One; families that read longer prompts override this."""
        return 1

    def size_tensors(self, sizes: SizeConditioning) -> Conditioning:
        """No tensors; families whose denoiser takes sizes override this."""
        return Conditioning({})

    def open_lora(self, files: ModelFiles) -> Lora:
        """Compare a LoRA's header with the weights of this model. Raises ModelError."""
        weights = {
            part: {name: self.networks[name].weights for name in folders if name in self.networks}
            for part, folders in self.PARTS.items()
        }
        return open_lora(files, weights["denoiser"], weights["text_encoder"], self.first_layers())

    def first_layers(self) -> Weights:
        """What the denoiser's weights are in a file of its first release, if its layers are others there: by diffusers'
        names, the name of a layer as that of the tensor, its rows and their order. Families override this."""
        return {}

    def open_control(self, files: ModelFiles) -> ControlFile:
        """Raises ModelError; families that take controls override this."""
        raise files.error("is a ControlNet or T2I-Adapter for another family of models")

    def open_ip_adapter(self, files: ModelFiles) -> IPAdapter:
        """Raises ModelError; families that take image prompts override this."""
        raise files.error("is for a model that takes image prompts")

    def check_weights(self, part: Part) -> None:
        """Raise ModelError unless the files have exactly the tensors that a part needs. Reads no tensors."""
        for folder in self.PARTS[part]:
            if folder in self.networks:
                check_network(self.networks[folder])

    def placement_of(self, part: Part, placement: Placement) -> Placement:
        """How the networks of a part are run on a machine that has chosen `placement`; families may override it."""
        return placement

    def part_bytes(self, part: Part, placement: Placement) -> int:
        """Bytes that the weights of a part take in memory."""
        part_placement = self.placement_of(part, placement)
        return sum(
            network_bytes(self.networks[name], part_placement) for name in self.PARTS[part] if name in self.networks
        )

    def load(self, folder: str, placement: Placement) -> Any:
        """Read the weights of one component. Raises ModelError."""
        part: Part = next(part for part, folders in self.PARTS.items() if folder in folders)
        network = load_network(self.networks[folder], self.placement_of(part, placement))
        if part == "denoiser" and placement.compiled is not None:
            return compiled(network, placement.compiled)
        return network
