"""How a machine runs networks: what its choices save, and that they change no bits, or only those that they may."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefect_regional_diffusion.sampling_core.models.compiling import compiled
from prefect_regional_diffusion.sampling_core.models.conditioning import GUIDANCE, PROMPT_EMBEDS, Conditioning, stack
from prefect_regional_diffusion.sampling_core.models.family import PARTS, Canvas, Checkpoint, Denoiser, SizeConditioning
from prefect_regional_diffusion.sampling_core.models.folder import open_folder
from prefect_regional_diffusion.sampling_core.models.lora_rows import combined
from prefect_regional_diffusion.sampling_core.models.offloading import (
    OffloadedNetworks,
    computing_device,
    networks_loaded,
    stream_layers,
)
from prefect_regional_diffusion.sampling_core.models.placement import Placement
from prefect_regional_diffusion.sampling_core.models.row_adapters import RowAdapters
from tests.tiny_flow_models import tiny_flux, tiny_sd3, tiny_z_image
from tests.tiny_loras import DENOISER, FLOWS, TEXT, opened, save_lora, tiny_lora
from tests.tiny_models import tiny_sd, tiny_sdxl

MAKERS: dict[str, Callable[[Path], str]] = {
    "sd": tiny_sd,
    "xl": tiny_sdxl,
    "sd3": tiny_sd3,
    "flux": tiny_flux,
    "z-image": tiny_z_image,
}
CANVAS = Canvas(64, 64)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, make in MAKERS.items():
        make(folder / name)
    return folder


def narrowed(folder: Path, dtype: torch.dtype) -> None:
    """Matrices and kernels become `dtype`, and all else bfloat16, as in the files that people have."""
    for file in folder.rglob("*.safetensors"):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                matrix = tensor.ndim >= 2 and name.endswith(".weight")
                tensors[name] = tensor.to(dtype if matrix else torch.bfloat16)
        save_file(tensors, file, {"format": "pt"})


@pytest.fixture
def folder(made: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of the model that the test is parametrised with."""
    return Path(shutil.copytree(made / request.param, tmp_path / request.param))


def predicted(
    denoiser: Denoiser, checkpoint: Checkpoint, told: Conditioning, rows: Sequence[RowAdapters] = (), num_rows: int = 1
) -> Tensor:
    """Of so many rows with the same prompt."""
    levels = checkpoint.noise_schedule(CANVAS, 4)
    level = levels.level(levels.sigmas[len(levels.sigmas) // 2])
    told = told.joined(checkpoint.size_tensors(SizeConditioning(CANVAS, CANVAS)))
    if checkpoint.facts.guidance == "embedded":
        told = told.joined(Conditioning({GUIDANCE: torch.tensor([3.5])}))
    x = torch.randn(num_rows, checkpoint.facts.latent_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    return denoiser(x, [level] * num_rows, stack([told] * num_rows), rows)


def answers(checkpoint: Checkpoint, placement: Placement) -> tuple[list[Tensor], int]:
    """Prompt, prediction, latent and picture, and the bytes of all parameters."""
    with networks_loaded() as networks:
        told = checkpoint.load_text_encoder(placement).encode("a red circle")
        denoiser, autoencoder = checkpoint.load_denoiser(placement), checkpoint.load_autoencoder(placement)
    predicted_latent = predicted(denoiser, checkpoint, told)
    picture = autoencoder.decode(predicted_latent)
    tensors = [*told.tensors.values(), predicted_latent, picture, autoencoder.encode(picture[0])]
    # Tied tensors are one.
    held = {one.data_ptr(): one.nbytes for network in networks for one in network.parameters()}
    return tensors, sum(held.values())


def same(one: list[Tensor], other: list[Tensor]) -> list[bool]:
    return [torch.equal(own, theirs) for own, theirs in zip(one, other, strict=True)]


@pytest.mark.parametrize("folder", MAKERS, indirect=True)
def test_fp8_stays_fp8_in_memory_and_gives_the_bits_of_weights_that_were_widened_before(folder: Path) -> None:
    narrowed(folder, torch.float8_e4m3fn)
    checkpoint = open_folder(str(folder))
    wide, all_bytes = answers(checkpoint, Placement(dtype=torch.bfloat16, weights="computed"))
    narrow, few_bytes = answers(checkpoint, Placement(dtype=torch.bfloat16))
    assert all(same(wide, narrow))
    # Tables of tokens are most of a tiny model. Of Z-Image, diffusers keeps two embedders as wide as it computes.
    assert few_bytes < (0.8 if folder.name == "z-image" else 0.65) * all_bytes


@pytest.mark.parametrize("folder", ["sd", "flux"], indirect=True)
@pytest.mark.parametrize("stored", [torch.float8_e5m2, torch.float16, torch.bfloat16])
def test_other_narrow_numbers_stay_so_if_they_are_asked_to(folder: Path, stored: torch.dtype) -> None:
    narrowed(folder, stored)
    checkpoint = open_folder(str(folder))
    wide, _ = answers(checkpoint, Placement(weights="computed"))
    narrow, held = answers(checkpoint, Placement(weights="stored"))
    assert all(same(wide, narrow))
    told = sum(checkpoint.part_bytes(part, Placement(weights="stored")) for part in PARTS)
    assert held == pytest.approx(told, rel=0.02)
    widened = sum(checkpoint.part_bytes(part, Placement(weights="computed")) for part in PARTS)
    assert told < (0.35 if stored.itemsize == 1 else 0.55) * widened


@pytest.mark.parametrize("folder", ["sd"], indirect=True)
def test_a_forward_that_ends_in_an_error_leaves_narrow_weights_as_they_were(folder: Path) -> None:
    narrowed(folder, torch.float8_e4m3fn)
    checkpoint, placement = open_folder(str(folder)), Placement()
    told = checkpoint.load_text_encoder(placement).encode("a red circle")
    with networks_loaded() as networks:
        denoiser = checkpoint.load_denoiser(placement)
    first = predicted(denoiser, checkpoint, told)

    def runs_out(*_: object) -> None:
        raise torch.OutOfMemoryError

    handle = networks[0].mid_block.resnets[0].conv1.register_forward_hook(runs_out)
    layer = networks[0].mid_block.resnets[0].conv1
    with pytest.raises(torch.OutOfMemoryError):
        predicted(denoiser, checkpoint, told)
    handle.remove()
    assert torch.equal(predicted(denoiser, checkpoint, told), first)
    assert layer.weight.dtype == torch.float8_e4m3fn


@pytest.mark.parametrize("folder", ["xl", "flux", "sd3", "z-image"], indirect=True)
@pytest.mark.parametrize("weights", ["computed", "auto"])
def test_layers_that_come_and_go_give_the_same_bits(folder: Path, weights: Any) -> None:
    """Here both memories are the host's; what is tested is that all layers are found, and work so."""
    narrowed(folder, torch.float8_e4m3fn)
    checkpoint = open_folder(str(folder))
    whole, _ = answers(checkpoint, Placement(weights=weights))
    streamed, _ = answers(checkpoint, Placement(weights=weights, offload="sequential"))
    assert all(same(whole, streamed))


@pytest.mark.parametrize("folder", ["sd"], indirect=True)
def test_inputs_belong_where_the_network_itself_says(folder: Path) -> None:
    with networks_loaded() as networks:
        open_folder(str(folder)).load_denoiser(Placement())
    (network,) = networks
    assert computing_device(network) == network.device == torch.device("cpu")
    stream_layers(network, "cpu:0")  # another name for it, so that the two are told apart
    assert computing_device(network) == network.device == torch.device("cpu:0")


@pytest.mark.parametrize("folder", FLOWS, indirect=True)
def test_loras_are_added_however_the_layers_lie_in_memory(folder: Path) -> None:
    """To weights of 8 bits that are widened in use, and to layers that come and go."""
    lora = tiny_lora(folder, 1, (DENOISER[folder.name], *TEXT[folder.name]))
    save_lora(lora.peft(), folder / "a.safetensors")
    narrowed(folder, torch.float8_e4m3fn)
    checkpoint = open_folder(str(folder))
    file, dtype = opened(str(folder), str(folder / "a.safetensors")), torch.bfloat16
    (layers,) = (combined([(one, 0.7)], "cpu", dtype) for one in file.read("denoiser"))
    texts = [combined([(one, 0.7)], "cpu", dtype) for one in file.read("text_encoder")]

    def both(placement: Placement) -> list[Tensor]:
        encoder, denoiser = checkpoint.load_text_encoder(placement), checkpoint.load_denoiser(placement)
        told = encoder.encode("a red circle", loras=texts)
        assert not torch.equal(encoder.encode("a red circle")[PROMPT_EMBEDS], told[PROMPT_EMBEDS])
        prediction = predicted(denoiser, checkpoint, told, [RowAdapters(), RowAdapters(layers)], 2)
        assert same([*prediction], [*predicted(denoiser, checkpoint, told, num_rows=2)]) == [True, False]
        return [*told.tensors.values(), prediction]

    wide = both(Placement(dtype=dtype, weights="computed"))
    for placement in (Placement(dtype=dtype), Placement(dtype=dtype, offload="sequential")):
        assert all(same(wide, both(placement)))


def test_networks_are_on_the_device_as_long_as_somebody_uses_them() -> None:
    class Network:
        places: list[str] = []  # noqa: RUF012

        def to(self, place: str) -> None:
            self.places.append(place)

    network = Network()
    moved = OffloadedNetworks([network], "cuda")
    with moved.on_device(), moved.on_device():
        assert network.places == ["cuda"]
    with pytest.raises(ZeroDivisionError), moved.on_device():
        _ = 1 // 0
    assert network.places == ["cuda", "cpu", "cuda", "cpu"]


def test_weights_that_move_are_read_into_the_hosts_memory() -> None:
    assert Placement("cuda", offload="model").loaded_to == "cpu"
    assert Placement("cuda", offload="sequential").loaded_to == "cpu"
    assert Placement("cuda").loaded_to == "cuda"


MEAN_DIFFERENCE = 12
"""Of a value that is drawn in tiles, of 255. The embedded model's decoder looks at all of a picture."""


def test_tiles_change_large_pictures_a_little_and_small_ones_not_at_all() -> None:
    checkpoint = open_folder("embedded")
    whole, tiled = (checkpoint.load_autoencoder(Placement(tile=tile)) for tile in (None, 128))
    with Image.open(Path(__file__).parents[1] / "docs" / "four_quarters.png") as drawn:
        large = torch.from_numpy(np.asarray(drawn.convert("RGB").resize((256, 256))).copy())
    small = large[:128, :128].contiguous()
    latent = whole.encode(small)
    assert torch.equal(tiled.encode(small), latent)
    assert torch.equal(tiled.decode(latent), whole.decode(latent))
    latent = whole.encode(large)
    assert 0 < (tiled.encode(large) - latent).abs().mean() < 0.5 * latent.std()
    difference = (tiled.decode(latent).int() - whole.decode(latent).int()).abs().float()
    assert 0 < difference.mean() < MEAN_DIFFERENCE


@pytest.mark.parametrize("folder", ["sd", *FLOWS], indirect=True)
def test_what_is_compiled_is_for_rows_without_loras(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A LoRA hangs on layers for one forward, of which a compiled program knows nothing."""
    save_lora(tiny_lora(folder, 1, (DENOISER[folder.name],)).peft(), folder / "a.safetensors")
    checkpoint = open_folder(str(folder))
    (layers,) = opened(str(folder), str(folder / "a.safetensors")).read("denoiser")
    told = checkpoint.load_text_encoder(Placement()).encode("a red circle")
    calls = list[str]()

    def compile_(network: Any, *, mode: str, dynamic: bool) -> Any:
        assert (mode, dynamic) == ("max-autotune", False)

        def program(*args: Any, **named: Any) -> Any:
            calls.append("compiled")
            return network(*args, **named)

        program._orig_mod, program.dtype, program.device = network, network.dtype, network.device  # pyright: ignore
        return program

    plain = checkpoint.load_denoiser(Placement())
    monkeypatch.setattr(torch, "compile", compile_)
    denoiser: Any = checkpoint.load_denoiser(Placement(compiled="max-autotune"))
    without = predicted(denoiser, checkpoint, told, num_rows=2)
    assert torch.equal(without, predicted(plain, checkpoint, told, num_rows=2))
    assert calls == ["compiled"]
    rows = [RowAdapters(layers), RowAdapters()]
    mixed = predicted(denoiser, checkpoint, told, rows, 2)
    assert torch.equal(mixed, predicted(plain, checkpoint, told, rows, 2))
    assert not torch.equal(mixed, without)
    assert calls == ["compiled"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_what_torch_compiles_answers_as_before_but_for_the_last_bits() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.SiLU(), torch.nn.Linear(16, 4)).eval()
    fast = compiled(network, "default")
    for rows in (1, 3):
        x = torch.randn(rows, 16)
        with torch.inference_mode():
            first = fast(x)
            assert torch.equal(fast(x), first)
            torch.testing.assert_close(first, network(x), rtol=1e-5, atol=1e-6)
