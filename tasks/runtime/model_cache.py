"""Models in this process: each part of one (text encoders, denoiser, autoencoder) is loaded and evicted separately."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NamedTuple, cast

from prefect_regional_diffusion.sampling_core.models.control_file import ControlFile, ControlNetwork
from prefect_regional_diffusion.sampling_core.models.family import (
    Autoencoder,
    Checkpoint,
    Denoiser,
    Facts,
    Part,
    TextEncoder,
)
from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.folder import open_checkpoint, open_split
from prefect_regional_diffusion.sampling_core.models.model_key import ModelKey
from prefect_regional_diffusion.sampling_core.models.offloading import OffloadedNetworks, networks_loaded
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.tasks.inputs.file_names import portable_name
from prefect_regional_diffusion.tasks.inputs.model_cards import card_files, is_card
from prefect_regional_diffusion.tasks.inputs.model_names import find_model
from prefect_regional_diffusion.tasks.inputs.path_policy import model_place
from prefect_regional_diffusion.tasks.machine.attention import use_attention
from prefect_regional_diffusion.tasks.machine.load_listener import report_load
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.guarded_parts import (
    GuardedAutoencoder,
    GuardedDenoiser,
    GuardedTextEncoder,
)
from prefect_regional_diffusion.tasks.runtime.loaded_parts import counted_use, loaded_parts
from prefect_regional_diffusion.tasks.storage.fetched_models import is_fetched

_PART_NAMES: dict[Part, str] = {
    "text_encoder": "text encoders",
    "denoiser": "denoiser",
    "autoencoder": "autoencoder",
}


class PartKey(NamedTuple):
    """Key of a loaded part: the fingerprint of its model or its own file, and which part it is."""

    weights: str
    part: Part | Literal["control"]


class _Source(NamedTuple):
    """Where a part comes from: files with their fingerprint, its bytes in memory, and its label in messages.

    `name` is what jobs call it, if it stands for the whole: a model is in memory if its denoiser is.
    """

    files: ModelFiles
    fingerprint: Callable[[], str]
    bytes: int
    label: str
    name: str | None


def text_encoder(name: str, checkpoint: Checkpoint, key: ModelKey) -> AbstractContextManager[TextEncoder]:
    """The text encoders of a model, which stay in memory within the block; loaded on first use, as the settings say.

    `name` is what the job calls the model.

    The block raises ModelError, also for files that are not those of `key` any more.
    """

    def load(placement: Placement) -> TextEncoder:
        return GuardedTextEncoder(checkpoint.load_text_encoder(placement))

    return _of_model(name, checkpoint, PartKey(key.weights, "text_encoder"), load)


def denoiser(name: str, checkpoint: Checkpoint, key: ModelKey) -> AbstractContextManager[Denoiser]:
    """The denoiser of a model, in the same way."""

    def load(placement: Placement) -> Denoiser:
        # What cannot be decoded need not be sampled.
        checkpoint.check_weights("autoencoder")
        return GuardedDenoiser(checkpoint.load_denoiser(placement))

    return _of_model(name, checkpoint, PartKey(key.weights, "denoiser"), load)


def autoencoder(name: str, checkpoint: Checkpoint, key: ModelKey) -> AbstractContextManager[Autoencoder]:
    """The autoencoder of a model, in the same way."""

    def load(placement: Placement) -> Autoencoder:
        return GuardedAutoencoder(checkpoint.load_autoencoder(placement))

    return _of_model(name, checkpoint, PartKey(key.weights, "autoencoder"), load)


def control(file: ControlFile, facts: Facts) -> AbstractContextManager[ControlNetwork]:
    """A ControlNet or T2I-Adapter for a model of these facts, in the same way."""
    placement = settings().placement(facts)
    label = f"{file.kind} {portable_name(file.files.model)}"
    source = _Source(file.files, file.fingerprint, file.weight_bytes(placement), label, file.files.model)
    return _part(source, PartKey(file.fingerprint(), "control"), placement, lambda: file.load(placement))


def let_go(part: Part) -> None:
    """Evict this part of all models, unless it is in use."""
    loaded_parts().let_go(lambda key: isinstance(key, PartKey) and key.part == part)


def _of_model(
    name: str, checkpoint: Checkpoint, key: PartKey, load: Callable[[Placement], Any]
) -> AbstractContextManager[Any]:
    placement = settings().placement(checkpoint.facts)
    part = cast("Part", key.part)
    label = f"{_PART_NAMES[part]} of {portable_name(name)}"
    whole = name if part == "denoiser" else None
    source = _Source(checkpoint.files, checkpoint.fingerprint, checkpoint.part_bytes(part, placement), label, whole)
    return _part(source, key, placement, lambda: load(placement))


@contextmanager
def _part(source: _Source, key: PartKey, placement: Placement, load: Callable[[], Any]) -> Generator[Any]:
    def load_checked() -> tuple[Any, OffloadedNetworks]:
        if source.fingerprint() != key.weights:
            raise source.files.error("is not the model any more that the job was planned with: its files changed")
        if settings().attention != "auto":
            use_attention(settings().attention)
        with report_load(source.label, source.bytes), networks_loaded() as networks:
            part = load()
        return part, OffloadedNetworks(networks if placement.offload == "model" else (), placement.device)

    held = counted_use(key.part, key, source.bytes, load_checked, source.name)
    with held as (part, offloaded), offloaded.on_device():
        yield part


def open_model(name: str, field: str = "model") -> Checkpoint:
    """A model that a job names; it and the files that its links lead to are under the roots.

    Raises BadInput or ModelError.
    """
    if name == "embedded":
        return open_checkpoint(name)
    model = find_model(field, name)

    def follow(link: str) -> str:
        return link if is_fetched(link) else model_place(field, link, "whose links lead there too")

    if is_card(model.place):
        return open_split(model.place, card_files(field, model.place), follow)
    return open_checkpoint(model.place, follow, model.variant)
