"""Folders of flow models written as single files in the key layouts of Stability and Black Forest Labs.

Written from those layouts, and the other way round than the package reads them: each network is walked over by block.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.original_layouts import Tensors, hf_clip, ldm_vae, weights_of

DIFFUSION = "model.diffusion_model."


class _LayoutWriter:
    """The tensors of a network, each of which is to be taken once."""

    def __init__(self, tensors: Tensors) -> None:
        self._sources = dict(tensors)
        self.tensors: Tensors = {}

    def __contains__(self, name: str) -> bool:
        return name in self._sources

    def plain(self, old: str, new: str) -> None:
        """A layer as it is, its weight and its bias."""
        for kind in ("weight", "bias"):
            if f"{old}.{kind}" in self._sources:
                self.tensors[f"{new}.{kind}"] = self._sources.pop(f"{old}.{kind}")

    def one(self, old: str, new: str) -> None:
        self.tensors[new] = self._sources.pop(old)

    def fused(self, olds: list[str], new: str) -> None:
        """Layers below each other in one."""
        for kind in ("weight", "bias"):
            self.tensors[f"{new}.{kind}"] = torch.cat([self._sources.pop(f"{old}.{kind}") for old in olds])

    def turned(self, old: str, new: str) -> None:
        """diffusers keeps scale and shift, the originals shift and scale."""
        for kind in ("weight", "bias"):
            scale, shift = self._sources.pop(f"{old}.{kind}").chunk(2)
            self.tensors[f"{new}.{kind}"] = torch.cat([shift, scale])

    def done(self) -> Tensors:
        assert not self._sources, list(self._sources)
        return self.tensors


def _blocks(tensors: Tensors, prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in tensors if name.startswith(prefix))


def mmdit(tensors: Tensors) -> Tensors:
    """A transformer of Stable Diffusion 3 as Stability writes it."""
    writer = _LayoutWriter(tensors)
    writer.one("pos_embed.pos_embed", "pos_embed")
    writer.plain("pos_embed.proj", "x_embedder.proj")
    writer.plain("context_embedder", "context_embedder")
    for ours, theirs in (("timestep_embedder", "t_embedder"), ("text_embedder", "y_embedder")):
        writer.plain(f"time_text_embed.{ours}.linear_1", f"{theirs}.mlp.0")
        writer.plain(f"time_text_embed.{ours}.linear_2", f"{theirs}.mlp.2")
    blocks = _blocks(tensors, "transformer_blocks.")
    for number in range(blocks):
        old, new = f"transformer_blocks.{number}", f"joint_blocks.{number}"
        picture, text = f"{new}.x_block", f"{new}.context_block"
        for attention in ("attn", "attn2"):
            if f"{old}.{attention}.to_q.weight" in writer:
                writer.fused([f"{old}.{attention}.to_{letter}" for letter in "qkv"], f"{picture}.{attention}.qkv")
                writer.plain(f"{old}.{attention}.to_out.0", f"{picture}.{attention}.proj")
                writer.plain(f"{old}.{attention}.norm_q", f"{picture}.{attention}.ln_q")
                writer.plain(f"{old}.{attention}.norm_k", f"{picture}.{attention}.ln_k")
        writer.fused([f"{old}.attn.add_{letter}_proj" for letter in "qkv"], f"{text}.attn.qkv")
        writer.plain(f"{old}.attn.norm_added_q", f"{text}.attn.ln_q")
        writer.plain(f"{old}.attn.norm_added_k", f"{text}.attn.ln_k")
        writer.plain(f"{old}.norm1.linear", f"{picture}.adaLN_modulation.1")
        writer.plain(f"{old}.ff.net.0.proj", f"{picture}.mlp.fc1")
        writer.plain(f"{old}.ff.net.2", f"{picture}.mlp.fc2")
        if number == blocks - 1:
            writer.turned(f"{old}.norm1_context.linear", f"{text}.adaLN_modulation.1")
        else:
            writer.plain(f"{old}.norm1_context.linear", f"{text}.adaLN_modulation.1")
            writer.plain(f"{old}.attn.to_add_out", f"{text}.attn.proj")
            writer.plain(f"{old}.ff_context.net.0.proj", f"{text}.mlp.fc1")
            writer.plain(f"{old}.ff_context.net.2", f"{text}.mlp.fc2")
    writer.plain("proj_out", "final_layer.linear")
    writer.turned("norm_out.linear", "final_layer.adaLN_modulation.1")
    return writer.done()


def flux_dit(tensors: Tensors) -> Tensors:
    """A transformer of FLUX.1 as Black Forest Labs write it."""
    writer = _LayoutWriter(tensors)
    writer.plain("x_embedder", "img_in")
    writer.plain("context_embedder", "txt_in")
    for ours, theirs in (("timestep", "time"), ("text", "vector"), ("guidance", "guidance")):
        writer.plain(f"time_text_embed.{ours}_embedder.linear_1", f"{theirs}_in.in_layer")
        writer.plain(f"time_text_embed.{ours}_embedder.linear_2", f"{theirs}_in.out_layer")
    for number in range(_blocks(tensors, "transformer_blocks.")):
        old, new = f"transformer_blocks.{number}", f"double_blocks.{number}"
        for stream, norm, projection, mixed, out, norm_prefix in (
            ("img", "norm1", "to_{}", "ff", "to_out.0", ""),
            ("txt", "norm1_context", "add_{}_proj", "ff_context", "to_add_out", "added_"),
        ):
            writer.plain(f"{old}.{norm}.linear", f"{new}.{stream}_mod.lin")
            writer.fused([f"{old}.attn.{projection.format(letter)}" for letter in "qkv"], f"{new}.{stream}_attn.qkv")
            writer.one(f"{old}.attn.norm_{norm_prefix}q.weight", f"{new}.{stream}_attn.norm.query_norm.scale")
            writer.one(f"{old}.attn.norm_{norm_prefix}k.weight", f"{new}.{stream}_attn.norm.key_norm.scale")
            writer.plain(f"{old}.attn.{out}", f"{new}.{stream}_attn.proj")
            writer.plain(f"{old}.{mixed}.net.0.proj", f"{new}.{stream}_mlp.0")
            writer.plain(f"{old}.{mixed}.net.2", f"{new}.{stream}_mlp.2")
    for number in range(_blocks(tensors, "single_transformer_blocks.")):
        old, new = f"single_transformer_blocks.{number}", f"single_blocks.{number}"
        writer.plain(f"{old}.norm.linear", f"{new}.modulation.lin")
        writer.fused([*(f"{old}.attn.to_{letter}" for letter in "qkv"), f"{old}.proj_mlp"], f"{new}.linear1")
        writer.one(f"{old}.attn.norm_q.weight", f"{new}.norm.query_norm.scale")
        writer.one(f"{old}.attn.norm_k.weight", f"{new}.norm.key_norm.scale")
        writer.plain(f"{old}.proj_out", f"{new}.linear2")
    writer.plain("proj_out", "final_layer.linear")
    writer.turned("norm_out.linear", "final_layer.adaLN_modulation.1")
    return writer.done()


def t5(tensors: Tensors, prefix: str) -> Tensors:
    """T5's encoder, whose embeddings are there under both names."""
    additions = {"encoder.embed_tokens.weight": tensors["shared.weight"].clone(), "logit_scale": torch.tensor(4.6)}
    scale = prefix.removesuffix("transformer.") + "logit_scale"
    return {scale: additions.pop("logit_scale")} | {
        prefix + name: tensor for name, tensor in (tensors | additions).items()
    }


def clip(tensors: Tensors, prefix: str, projection: torch.Tensor | None = None) -> Tensors:
    """A text encoder of CLIP, whose projection is a layer beside it."""
    plain = dict(tensors)
    projection_weight = plain.pop("text_projection.weight", projection)
    weights = hf_clip(plain, prefix)
    return weights if projection_weight is None else weights | {f"{prefix}text_projection.weight": projection_weight}


def original_flow(folder: Path, kind: str) -> Tensors:
    """All tensors of a folder of `sd3` or `flux`, as one file has them."""
    transformer = (mmdit if kind == "sd3" else flux_dit)(weights_of(folder, "transformer"))
    all_tensors = {DIFFUSION + name: tensor for name, tensor in transformer.items()} | ldm_vae(
        weights_of(folder, "vae")
    )
    all_tensors |= clip(weights_of(folder, "text_encoder"), "text_encoders.clip_l.transformer.")
    second = weights_of(folder, "text_encoder_2")
    if kind == "flux":
        return all_tensors | t5(second, "text_encoders.t5xxl.transformer.")
    all_tensors |= clip(second, "text_encoders.clip_g.transformer.")
    if (folder / "text_encoder_3").exists():
        all_tensors |= t5(weights_of(folder, "text_encoder_3"), "text_encoders.t5xxl.transformer.")
    return all_tensors


def save(tensors: Tensors, file: Path) -> None:
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, file)


def beside(folder: Path, file: Path) -> None:
    """The folder's configurations and tokenizers in the folder beside a file."""
    shutil.copytree(folder, file.with_suffix(""), ignore=shutil.ignore_patterns("*.safetensors"))
