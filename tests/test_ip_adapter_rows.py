"""IP-Adapters: rows of one forward attend to different images, and answer as diffusers' processors do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers import UNet2DConditionModel as UNet
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.files import find_file
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.image_encoder import ImageFeatures
from prefect_regional_diffusion.sampling_core.models.ip_adapter_rows import (
    KeysValues,
    RowImage,
    attending_in_flux,
    attending_in_unet,
)
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.tensors.specs import specs_of
from tests.tiny_flow_models import tiny_flux
from tests.tiny_ip_adapters import SMALL, as_state_dict, flux_adapter, save_adapter, unet_adapter
from tests.tiny_models import OTHER, tiny_sd, tiny_sdxl

MODELS: dict[str, Callable[[Path], str]] = {
    "sd": tiny_sd,
    "xl": tiny_sdxl,
    "xl, other sizes": lambda folder: tiny_sdxl(folder, 1, OTHER),
    "flux": tiny_flux,
}


class Images(NamedTuple):
    """Features of pictures, one per row."""

    projected: Tensor
    patches: Tensor

    def features(self, row: int) -> ImageFeatures:
        return ImageFeatures(self.projected[row : row + 1], self.patches[row : row + 1])


def images(seed: int, rows: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(rows, 17, SMALL.width, generator=generator)
    return Images(torch.randn(rows, SMALL.projection, generator=generator), patches)


class Network:
    """A network of diffusers and an adapter for it, asked with images per row by our hooks, and by its processors."""

    def __init__(self, model: str, folder: Path, *, plus: bool) -> None:
        self.flux = model == "flux"
        self.folder = MODELS[model](folder / "model")
        self.network = self._loaded()
        made = flux_adapter(self.folder) if self.flux else unet_adapter(self.folder, plus=plus)
        self.tensors = made
        file = save_adapter(made, folder / "adapter.safetensors")
        self.adapter = open_folder(self.folder).open_ip_adapter(find_file("file", file, file))
        self.plus = plus
        generator = torch.Generator().manual_seed(3)
        if self.flux:
            config = self.network.config
            self.inputs: dict[str, Tensor] = {
                "hidden_states": torch.randn(4, 64, config["in_channels"], generator=generator),
                "encoder_hidden_states": torch.randn(4, 9, config["joint_attention_dim"], generator=generator),
                "pooled_projections": torch.randn(4, config["pooled_projection_dim"], generator=generator),
                "timestep": torch.full((4,), 0.7),
                "guidance": torch.full((4,), 3.5),
            }
            self.shared = {"img_ids": torch.zeros(64, 3), "txt_ids": torch.zeros(9, 3)}
        else:
            cross = self.network.config["cross_attention_dim"]
            self.inputs = {
                "sample": torch.randn(4, 4, 16, 16, generator=generator),
                "encoder_hidden_states": torch.randn(4, 77, cross, generator=generator),
                "timestep": torch.full((4,), 500),
            }
            self.shared = {}

    def _loaded(self) -> Any:
        kind, part = (FluxTransformer2DModel, "transformer") if self.flux else (UNet, "unet")
        return kind.from_pretrained(Path(self.folder) / part, local_files_only=True).eval()

    def _of(self, network: Any, rows: Sequence[int], **asked: Any) -> Tensor:
        own = {name: tensor[list(rows)] for name, tensor in self.inputs.items()}
        added = asked.pop("added", {})
        if "add_embedding.linear_1.weight" in network.state_dict():
            size = network.config["projection_class_embeddings_input_dim"] - 6 * 8
            added = added | {"text_embeds": torch.ones(len(rows), size), "time_ids": torch.ones(len(rows), 6)}
        extra = {} if self.flux else {"added_cond_kwargs": added}
        with torch.inference_mode():
            return network(**own, **self.shared, **extra, **asked, return_dict=False)[0]

    def row_image(self, features: ImageFeatures, strength: float = 1.0) -> RowImage:
        found = self.adapter.load(Placement()).keys_and_values(features)
        assert specs_of(found) == self.adapter.specs
        names = [layer.name for layer in self.adapter.plan.layers]
        return RowImage({name: KeysValues(found[f"{name}.keys"], found[f"{name}.values"]) for name in names}, strength)

    def ours(self, rows: Sequence[int], *wanted: Sequence[RowImage]) -> Tensor:
        attending = attending_in_flux if self.flux else attending_in_unet
        with attending(self.network, wanted):
            return self._of(self.network, rows)

    def diffusers(self, rows: Sequence[int], found: Images, strength: float) -> Tensor:
        """All rows with images, at one strength, by diffusers' processors."""
        network = self._loaded()
        network._load_ip_adapter_weights([as_state_dict(self.tensors)])
        for processor in network.attn_processors.values():
            if hasattr(processor, "to_k_ip"):
                processor.scale = [strength]
        embeds = (found.patches if self.plus else found.projected)[list(rows)][:, None]
        if self.flux:
            return self._of(network, rows, joint_attention_kwargs={"ip_adapter_image_embeds": [embeds]})
        return self._of(network, rows, added={"image_embeds": [embeds]})


@pytest.fixture(
    params=[(model, plus) for model in MODELS for plus in (False, True) if not (plus and model == "flux")],
    ids=lambda given: f"{given[0]}{' plus' if given[1] else ''}",
    scope="module",
)
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Network:
    model, plus = request.param
    return Network(model, tmp_path_factory.mktemp("network"), plus=plus)


def test_rows_of_one_forward_attend_to_images_of_their_own(network: Network) -> None:
    """The bar: to 1e-5 what diffusers' processors answer, and what separate forwards do."""
    found = images(7, 4)
    a, b = network.row_image(found.features(1), 0.8), network.row_image(found.features(2), -0.5)
    together = network.ours([0, 1, 2, 3], [], [a], [b], [a, b])
    plain = network.ours([0, 1, 2, 3])
    assert torch.equal(together[0], plain[0]), "a row without images is the plain network's, to the last bit"
    for row, own in enumerate(([], [a], [b], [a, b])):
        torch.testing.assert_close(together[row], network.ours([row], own)[0], atol=1e-5, rtol=0)
    for row, strength in ((1, 0.8), (2, -0.5)):
        theirs = network.diffusers([row], found, strength)[0]
        torch.testing.assert_close(together[row], theirs, atol=1e-5, rtol=0)
        assert (plain[row] - theirs).abs().max() > 0.05
    assert (together[3] - network.ours([3], [a])[0]).abs().max() > 0.05


def test_no_image_is_not_an_image_of_zeros(network: Network) -> None:
    none = network.row_image(ImageFeatures(torch.zeros(1, SMALL.projection), torch.zeros(1, 17, SMALL.width)))
    assert (network.ours([0], [none]) - network.ours([0], [])).abs().max() > 0.01


def test_a_network_is_left_as_it_was(network: Network) -> None:
    before = network.ours([0, 1])
    image = network.row_image(images(7, 1).features(0))
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.network.modules())
    assert not torch.equal(network.ours([0, 1], [image], []), before)
    with pytest.raises(ValueError, match="there are images for 3"):
        network.ours([0, 1], [image], [], [])
    with pytest.raises(AttributeError, match="no_such_layer"):
        network.ours([0], [RowImage({"no_such_layer": next(iter(image.layers.values()))}, 1.0)])
    after = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.network.modules())
    assert (hooks, after) == (0, 0)
    assert torch.equal(network.ours([0, 1]), before)
