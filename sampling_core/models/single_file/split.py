"""Models whose parts lie in files of their own, as ComfyUI keeps them: put together as one file has them.

A file of weights has the network, alone or with other parts; those that lie in a file of their own take their place.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from prefect_regional_diffusion.sampling_core.models.files import ModelFiles
from prefect_regional_diffusion.sampling_core.models.single_file import ldm_unet, ldm_vae
from prefect_regional_diffusion.sampling_core.models.single_file.tensors import Tensors, axis
from prefect_regional_diffusion.sampling_core.models.single_file.uniform import uniform
from prefect_regional_diffusion.sampling_core.models.tensor_info import Weights
from prefect_regional_diffusion.sampling_core.models.weights import read_header
from prefect_regional_diffusion.sampling_core.text.plain_text import plain_value

WEIGHTS, VAE, TEXT_ENCODER = "model.safetensors", "vae.safetensors", "text_encoder_{}.safetensors"
"""What the files are known as: their own names change no picture. Text encoders are numbered."""
MOST_TEXT_ENCODERS = 3

_CLIP_TOKENS = "text_model.embeddings.token_embedding.weight"
_T5_BLOCKS = "encoder.block."


class PartFiles(NamedTuple):
    """Where the files of a model lie: its weights, and what is not in them or replaces what is.

    `configurations` is a folder with what the tensors do not tell, laid out as a model's, if there is such a folder.
    """

    weights: str
    configurations: str
    text_encoders: tuple[str, ...] = ()
    vae: str | None = None


def put_together(files: ModelFiles) -> tuple[ModelFiles, Tensors]:
    """All tensors of a model's files by the names of a single file; text encoders are named by what they are.

    Raises ModelError for a file that is not what it is named as.
    """
    names = {file.name for file in files.files}
    encoders = [name for name in map(TEXT_ENCODER.format, range(MOST_TEXT_ENCODERS)) if name in names]
    all_tensors = _read(files, WEIGHTS)
    if VAE in names or encoders:
        all_tensors = _with_prefix(all_tensors, ldm_unet.PREFIX)
    if VAE in names:
        all_tensors = _replace_part(all_tensors, ldm_vae.PREFIX, _vae(files))
    new_names: dict[str, str] = {}
    for name, (kind, tensors) in _text_encoders(files, encoders).items():
        new_names[name] = TEXT_ENCODER.format(kind)
        encoder_tensors = {
            f"transformer.{inner}": info._replace(file=new_names[name]) for inner, info in tensors.items()
        }
        prefix = f"text_encoders.{kind}."
        all_tensors = _replace_part(
            all_tensors, prefix, {prefix + inner: info for inner, info in encoder_tensors.items()}
        )
    renamed_files = (file._replace(name=new_names.get(file.name, file.name)) for file in files.files)
    return ModelFiles(files.model, tuple(sorted(renamed_files))), all_tensors


def _replace_part(tensors: Tensors, prefix: str, part: Tensors) -> Tensors:
    """The tensors with others in the place of all that begin with a prefix."""
    return {name: info for name, info in tensors.items() if not name.startswith(prefix)} | dict(part)


def _read(files: ModelFiles, name: str) -> Tensors:
    return uniform(read_header(files, name)[0], files)


def _with_prefix(tensors: Tensors, prefix: str) -> Weights:
    """Tensors of a part that may be written alone, without the prefix that it has beside others."""
    is_bare = not any(name.startswith(prefix) for name in tensors)
    return {prefix + name if is_bare else name: info for name, info in tensors.items()}


def _vae(files: ModelFiles) -> Weights:
    tensors = _with_prefix(_read(files, VAE), ldm_vae.PREFIX)
    if f"{ldm_vae.PREFIX}decoder.conv_in.weight" not in tensors:
        raise files.error(f"has a vae that is no autoencoder ({_first_name(tensors)} is in it)")
    return {name: info for name, info in tensors.items() if name.startswith(ldm_vae.PREFIX)}


def _text_encoders(files: ModelFiles, names: Iterable[str]) -> dict[str, tuple[str, Tensors]]:
    """By file: what a text encoder is called in single files, and its tensors. Of two of CLIP's, G is the wider one."""
    tensors_by_file = {name: _read(files, name) for name in names}
    clip = [name for name, tensors in tensors_by_file.items() if _CLIP_TOKENS in tensors]
    t5 = [name for name, tensors in tensors_by_file.items() if any(inner.startswith(_T5_BLOCKS) for inner in tensors)]
    for name, tensors in tensors_by_file.items():
        if name not in (*clip, *t5):
            raise files.error(f"has a text encoder that is neither CLIP's nor T5's ({_first_name(tensors)} is in it)")
    widths = {name: axis(tensors_by_file[name], _CLIP_TOKENS, 1) for name in clip}
    if len(clip) > 2 or len(t5) > 1 or len(set(widths.values())) < len(clip):
        raise files.error(
            "has text encoders that are the same one: CLIP's two differ in width, and of T5 there is one "
            f"({len(clip)} of CLIP with {', '.join(map(str, widths.values()))} features, {len(t5)} of T5)"
        )
    kinds = dict(zip(sorted(clip, key=lambda name: widths[name]), ("clip_l", "clip_g"), strict=False))
    return {name: (kinds.get(name, "t5xxl"), tensors) for name, tensors in tensors_by_file.items()}


def _first_name(tensors: Tensors) -> str:
    return plain_value(min(tensors, default=""))
