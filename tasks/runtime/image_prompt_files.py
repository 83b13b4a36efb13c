"""Image prompts of jobs: their files, compared with the models that they are for, and keys and values of images."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from torch import Tensor

from prefect_regional_diffusion.sampling_core.job.resolved import ResolvedJob
from prefect_regional_diffusion.sampling_core.models.family import Checkpoint, Facts
from prefect_regional_diffusion.sampling_core.models.files import find_file
from prefect_regional_diffusion.sampling_core.models.image_encoder import (
    ImageEncoderFolder,
    ImageFeatures,
    open_image_encoder,
)
from prefect_regional_diffusion.sampling_core.models.ip_adapter_file import IPAdapter
from prefect_regional_diffusion.sampling_core.models.ip_adapter_rows import ImageLayers, KeysValues
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.planning.image_prompt_fit import ImagePromptFiles, fingerprint
from prefect_regional_diffusion.sampling_core.tensors.types import RgbImage
from prefect_regional_diffusion.tasks.inputs.file_names import shown_path
from prefect_regional_diffusion.tasks.inputs.image_files import middle_square
from prefect_regional_diffusion.tasks.inputs.limits import at_most
from prefect_regional_diffusion.tasks.inputs.path_policy import adapter_place, image_encoder_place
from prefect_regional_diffusion.tasks.machine.settings import settings

K = TypeVar("K")
_KEYS_AND_VALUES = "bytes of what is attended to of its image prompts, REGIONAL_MAX_TENSOR_BYTES"


class ImageSource(NamedTuple):
    """What keys and values are computed from: a picture in the encoder's size, or none."""

    adapter: IPAdapter
    encoder: ImageEncoderFolder
    picture: RgbImage | None


@dataclass(frozen=True)
class ImagePrompts:
    """The image prompts of a job: their files, and what keys and values are computed from, by model and fingerprint."""

    files: ImagePromptFiles
    sources: Mapping[tuple[str, str], ImageSource]

    @property
    def bytes(self) -> int:
        """Bytes of the pictures."""
        pictures = {id(source.picture): source.picture for source in self.sources.values()}
        return sum(picture.nbytes for picture in pictures.values() if picture is not None)


def open_image_prompt_files(job: ResolvedJob, models: Mapping[str, Checkpoint]) -> ImagePromptFiles:
    """Compare a job's IP-Adapters with their models and image encoders. Raises BadInput or ModelError."""
    adapters: dict[tuple[str, str], IPAdapter] = {}
    encoders: dict[str, ImageEncoderFolder] = {}
    for use in job.image_prompt_uses:
        if (use.model, use.file) not in adapters:
            field = f"{use.field}.file"
            file = find_file(field, shown_path(use.file), adapter_place(field, use.file))
            adapters[use.model, use.file] = models[use.model].open_ip_adapter(file)
        if use.image_encoder not in encoders:
            encoders[use.image_encoder] = _open_encoder(f"{use.field}.image_encoder", use.image_encoder)
        adapters[use.model, use.file].check_encoder(encoders[use.image_encoder].configuration)
    return ImagePromptFiles(adapters, encoders)


def _open_encoder(field: str, name: str) -> ImageEncoderFolder:
    place = image_encoder_place(field, name)
    return open_image_encoder(field, shown_path(name), place, lambda link: image_encoder_place(field, link))


def image_prompts(
    job: ResolvedJob,
    models: Mapping[str, Checkpoint],
    files: ImagePromptFiles,
    photos: Mapping[str, RgbImage],
    digests: Mapping[str, str],
) -> ImagePrompts:
    """The image prompts of a job whose files were opened. `photos` and `digests` (SHA-256) are by path.

    Raises BadInput for keys and values that take too much memory together.
    """
    pictures: dict[tuple[str, int], RgbImage] = {}
    sources: dict[tuple[str, str], ImageSource] = {}
    for use in job.image_prompt_uses:
        adapter, encoder = files.adapters[use.model, use.file], files.encoders[use.image_encoder]
        size = encoder.configuration.image_size
        if (use.image, size) not in pictures:
            pictures[use.image, size] = middle_square(photos[use.image], size)
        picture = pictures[use.image, size]
        sources[use.model, fingerprint(adapter, encoder, digests[use.image])] = ImageSource(adapter, encoder, picture)
        if models[use.model].facts.guidance == "cfg":
            # For rows of negative prompts, which other models do not have.
            sources[use.model, fingerprint(adapter, encoder, None)] = ImageSource(adapter, encoder, None)
    total = sum(spec.most_bytes for source in sources.values() for spec in source.adapter.specs.values())
    at_most("job", total, settings().max_tensor_bytes, _KEYS_AND_VALUES)
    return ImagePrompts(files, sources)


def encode_images(sources: Mapping[K, ImageSource], facts: Facts) -> dict[K, dict[str, Tensor]]:
    """The keys and values of pictures, as in their adapters' `specs`. Raises ModelError.

    `facts` are of a model that they are for. Image encoders and adapters are loaded one after the other, each once, and
    not kept.
    """
    machine_placement = settings().placement(facts)
    # They are in memory only for this call.
    placement = Placement(machine_placement.device, machine_placement.dtype, weights="computed")
    features: dict[K, ImageFeatures] = {}
    for keys in _group_keys(sources, lambda source: source.encoder.fingerprint()):
        encoder = sources[keys[0]].encoder.load(placement)
        for key in keys:
            picture = sources[key].picture
            features[key] = encoder.no_picture() if picture is None else encoder(picture)
        del encoder
    tensors: dict[K, dict[str, Tensor]] = {}
    for keys in _group_keys(sources, lambda source: (source.adapter.fingerprint(), source.adapter.plan)):
        adapter = sources[keys[0]].adapter.load(placement)
        tensors |= {key: adapter.keys_and_values(features[key]) for key in keys}
        del adapter
    return tensors


def _group_keys(sources: Mapping[K, ImageSource], group_of: Callable[[ImageSource], Hashable]) -> Iterable[list[K]]:
    groups: dict[Hashable, list[K]] = {}
    for key, source in sources.items():
        groups.setdefault(group_of(source), []).append(key)
    return groups.values()


def image_layers(stored: Mapping[str, Tensor], placement: Placement) -> ImageLayers:
    """The stored keys and values of an image by layer, on the device and in the type that the network computes with."""
    device, dtype = placement.device, placement.dtype
    names = dict.fromkeys(name.rpartition(".")[0] for name in stored)
    return {
        name: KeysValues(*(stored[f"{name}.{role}"].to(device, dtype) for role in ("keys", "values"))) for name in names
    }
