"""Images: upright, in their own shape, with a tolerance for colours; what is no image is told what it is."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from prefect_regional_diffusion.sampling_core.errors import BadInput, RegionalError
from prefect_regional_diffusion.sampling_core.job.parsing import BadJob, parse_job
from prefect_regional_diffusion.sampling_core.job.resolved import resolve
from prefect_regional_diffusion.sampling_core.masks import rasterize as masks
from prefect_regional_diffusion.sampling_core.masks.color_maps import near_misses
from prefect_regional_diffusion.sampling_core.masks.image_fitting import Size, placing, same_shape
from prefect_regional_diffusion.sampling_core.names import Fit
from prefect_regional_diffusion.sampling_core.planning.canonical_job import job_hash
from prefect_regional_diffusion.sampling_core.tensors.types import RgbImage
from prefect_regional_diffusion.tasks.inputs.image_decoding import TooLargeError, unpacked
from prefect_regional_diffusion.tasks.inputs.image_files import read_image_files, resized
from prefect_regional_diffusion.tasks.machine import regular_files
from prefect_regional_diffusion.tasks.machine.regular_files import NoRegularFileError, open_regular
from prefect_regional_diffusion.tasks.machine.settings import settings
from prefect_regional_diffusion.tasks.runtime.prepare import Prepared, prepare
from tests.bombs import BOMBS
from tests.s3 import KEY, SECRET, client, s3_server
from tests.watching import Memory

FITS: tuple[Fit, ...] = ("crop", "contain", "stretch")
RED = [255, 0, 0]
sizes = st.tuples(st.integers(1, 200), st.integers(1, 200))


def quarters(width: int, height: int) -> Image.Image:
    """Red, green, blue and white, in reading order: no turn and no mirror leaves it as it is."""
    corners = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)
    return Image.fromarray(corners.repeat(height // 2, axis=0).repeat(width // 2, axis=1))


def job_with(mask: dict[str, Any] | None = None, **fields: Any) -> Any:
    regions = [{"prompt": "a red background", "mask": mask}] if mask else []
    return parse_job({"prompt": "a blue background", "regions": regions} | fields)


def prepared(mask: dict[str, Any] | None = None, **fields: Any) -> Prepared:
    return prepare(job_with(mask, **fields))


def refused(path: str, **fields: Any) -> RegionalError:
    with pytest.raises(RegionalError) as error:
        prepare(job_with({"image": path}, **fields))
    assert "\n" not in str(error.value)
    assert error.value.field == "regions.0.mask.image"
    return error.value


def not_allowed(path: str, **fields: Any) -> BadInput:
    error = refused(path, **fields)
    assert isinstance(error, BadInput)
    return error


# --- upright ---------------------------------------------------------------------------------------------

TURNED_BY_THE_CAMERA = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", TURNED_BY_THE_CAMERA)
def test_a_photo_is_turned_as_its_camera_was_held(orientation: int, kind: str, workdir: Path) -> None:
    """As a mask, as a colour map and as a init image: the tag undoes what the sensor saw."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    TURNED_BY_THE_CAMERA[orientation](quarters(96, 64)).save(f"photo.{kind}", exif=exif)
    name = f"photo.{kind}"
    job = {"width": 96, "height": 64, "init_image": name, "denoise": 0.5}
    inputs = prepared({"color_map": name, "color": RED, "tolerance": 40}, **job).inputs.tensors
    corners = inputs["picture"][[8, 8, 56, 56], [8, 88, 8, 88]].float()
    wanted = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]).float()
    torch.testing.assert_close(corners, wanted, rtol=0, atol=40)
    assert inputs["0"][1, 1] == 1
    assert inputs["0"][6:].max() == inputs["0"][:, 8:].max() == 0
    bright = prepared({"image": name}, **job).inputs.tensors["0"]
    assert bright[-2, -2] > 0.9
    assert bright[:3].max() < 0.6


def test_damaged_metadata_turns_nothing_and_refuses_nothing(workdir: Path) -> None:
    quarters(16, 16).save("odd.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    quarters(16, 16).save("plain.jpg")
    odd, plain = (
        read_image_files(resolve(job_with({"image": name}))).photos[name] for name in ("odd.jpg", "plain.jpg")
    )
    assert torch.equal(odd, plain)


# --- shape -----------------------------------------------------------------------------------------------


@given(image=sizes, canvas=sizes, fit=st.sampled_from(FITS))
def test_placing_stays_inside_and_keeps_the_shape(image: Size, canvas: Size, fit: Fit) -> None:
    source, target = placing(image, canvas, fit)
    for box, whole in ((source, image), (target, canvas)):
        assert 0 <= box.top <= whole[0] - box.height
        assert 0 <= box.left <= whole[1] - box.width
        assert min(box.size) >= 1
        # In the middle, to a pixel.
        assert abs(whole[0] - box.height - 2 * box.top) <= 1
        assert abs(whole[1] - box.width - 2 * box.left) <= 1
    assert fit == "contain" or target.size == canvas
    assert fit == "crop" or source.size == image
    outer, box, shape = (image, source, canvas) if fit == "crop" else (canvas, target, image)
    if fit != "stretch" and not same_shape(image, canvas):
        # The largest box of that shape, to a whole pixel.
        scale = min(outer[0] / shape[0], outer[1] / shape[1])
        for side, wanted in zip(box.size, shape, strict=True):
            assert abs(side - max(1.0, wanted * scale)) <= 0.5 + 1e-9


def test_one_percent_is_one_shape() -> None:
    assert same_shape((1000, 1500), (128, 192))
    assert same_shape((667, 1000), (128, 192))
    assert not same_shape((300, 400), (128, 128))
    assert not same_shape((100, 102), (128, 128))


def striped(height: int, width: int) -> RgbImage:
    """Grey that grows from left to right, 0 to 200."""
    ramp = torch.linspace(0, 200, width).round().to(torch.uint8)
    return ramp[None, :, None].expand(height, width, 3).contiguous()


@pytest.mark.parametrize("fit", FITS)
def test_start_images_and_masks_lie_alike(fit: Fit) -> None:
    """A photo of 200 x 100 on a square canvas: its middle half, all of it in the middle, or all of it squeezed."""
    photo, canvas = striped(100, 200), (64, 64)
    picture = resized(photo, canvas, fit)
    mask = masks.from_image(canvas, photo, fit)
    inside = slice(16, 48) if fit == "contain" else slice(0, 64)
    torch.testing.assert_close(picture[inside].float().mean(dim=-1) / 255, mask[inside], rtol=0, atol=0.02)
    ends = {"crop": (50, 150), "contain": (0, 200), "stretch": (0, 200)}[fit]
    torch.testing.assert_close(picture[32, [0, -1], 0].float(), torch.tensor(ends).float(), rtol=0, atol=5)
    if fit == "contain":
        assert mask[:16].max() == mask[48:].max() == 0
        # The picture's own edge goes on, where a black bar would be drawn into the result.
        assert torch.equal(picture[:16], picture[16:17].expand(16, 64, 3))
        assert torch.equal(picture[48:], picture[47:48].expand(16, 64, 3))
    whole = masks.from_color_map(canvas, torch.zeros(100, 200, 3, dtype=torch.uint8), (0, 0, 0), fit=fit)
    covered = torch.zeros(canvas)
    covered[inside] = 1
    torch.testing.assert_close(whole, covered, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fit", FITS)
def test_what_has_the_size_stays_to_the_last_bit(fit: Fit) -> None:
    photo = torch.randint(0, 256, (40, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(resized(photo, (40, 56), fit), photo)
    assert torch.equal(masks.from_image((40, 56), photo, fit), photo.float().mean(dim=-1) / 255)


def test_another_shape_is_a_warning(workdir: Path) -> None:
    quarters(400, 300).save("wide.png")
    quarters(256, 258).save("square.png")
    fields: dict[str, Any] = {"init_image": "wide.png", "denoise": 0.5}
    assert prepared(None, **fields).warnings() == [
        "init_image: 400 x 300 pixels is not the canvas' shape, 128 x 128: it is cropped (init_fit)"
    ]
    assert prepared(None, **fields, init_fit="contain").warnings() == [
        "init_image: 400 x 300 pixels is not the canvas' shape, 128 x 128: all of it is seen and its edges fill "
        "the rest (init_fit)"
    ]
    assert prepared({"image": "wide.png", "fit": "stretch"}).warnings() == [
        "regions.0.mask.image: 400 x 300 pixels is not the canvas' shape, 128 x 128: it is distorted (fit)"
    ]
    assert prepared({"color_map": "wide.png", "color": RED, "fit": "contain"}).warnings() == [
        "regions.0.mask.color_map: 400 x 300 pixels is not the canvas' shape, 128 x 128: all of it is seen and the "
        "rest is outside (fit)"
    ]
    protected = prepared(None, init_image="square.png", denoise=0.5, protect=[{"image": "wide.png"}])
    assert [line[:40] for line in protected.warnings()] == ["protect.0.image: 400 x 300 pixels is not"]
    assert prepared({"image": "square.png"}, init_image="square.png", denoise=0.5).warnings() == []


def test_a_mask_that_belongs_to_the_start_image_lies_on_it(workdir: Path) -> None:
    quarters(400, 300).save("wide.png")
    fields: dict[str, Any] = {"init_image": "wide.png", "denoise": 0.5, "init_fit": "contain"}
    assert prepared({"image": "wide.png"}, **fields).warnings()[2:] == [
        "regions.0.mask.image: it has the init image's size, and does not lie on it: fit is crop, init_fit is contain"
    ]
    assert len(prepared({"image": "wide.png", "fit": "contain"}, **fields).warnings()) == 2


def test_a_grid_cell_has_a_shape_of_its_own(workdir: Path) -> None:
    quarters(64, 128).save("tile.png")
    node = {"name": "MaskGridNKSamplersAdvanced", "columns": 2, "tile": {"image": "tile.png"}}
    fields = {"composition": "sequential", "sampler": "euler", "scheduler": "normal"}
    assert not any("shape" in line for line in prepared(None, **fields, node=node).warnings())
    warnings = prepared(None, **fields, node=node | {"columns": 1}).warnings()
    assert any(line.startswith("node.tile.image: 64 x 128 pixels is not a grid cell's shape, 128") for line in warnings)


def test_fit_and_tolerance_are_part_of_what_a_job_means(workdir: Path) -> None:
    """In the job's hash and in the key of its masks and pictures, which a store would else take for the others'."""
    quarters(400, 300).save("wide.png")
    jobs: list[Any] = [
        *(job_with(None, init_image="wide.png", denoise=0.5, init_fit=fit) for fit in FITS),
        *(job_with({"image": "wide.png", "fit": fit}) for fit in FITS),
        *(job_with({"color_map": "wide.png", "color": RED, "fit": fit}) for fit in FITS),
        *(job_with({"color_map": "wide.png", "color": RED, "tolerance": tolerance}) for tolerance in (1, 2)),
    ]
    ready = [prepare(job) for job in jobs]
    assert len({one.job_hash for one in ready}) == len({one.inputs.mask_hash for one in ready}) == len(jobs)
    with pytest.raises(
        BadJob, match=r"^init_fit: 'contain' is not allowed; allowed: left out where there is no init_image"
    ):
        job_with(None, init_fit="contain")


# --- colours ---------------------------------------------------------------------------------------------


def test_a_colour_that_a_jpeg_changed(workdir: Path) -> None:
    """The colour of a quarter, asked for exactly: the error says what is there, and doing as it says helps."""
    square = np.full((64, 64, 3), 240, dtype=np.uint8)
    square[:, :36] = (37, 99, 11)  # beyond the edge of a JPEG's blocks, where it is noisy
    Image.fromarray(square).save("map.jpg", quality=60)
    stored = np.asarray(Image.open("map.jpg"))[8, 8].tolist()
    asked = [stored[0] + 3, stored[1], stored[2]]
    with pytest.raises(BadInput) as error:
        prepared({"color_map": "map.jpg", "color": asked})
    assert error.value.field == "regions.0.mask.color"
    assert error.value.value == asked
    hexadecimal = "#{:02x}{:02x}{:02x}".format(*stored)
    assert f"{hexadecimal} {stored}" in error.value.allowed
    assert "#f0f0f0" not in error.value.allowed
    least = int(error.value.allowed.split("a tolerance of ")[1].split()[0])
    assert 1 <= least <= 3
    prepared({"color_map": "map.jpg", "color": asked, "tolerance": least})
    half = prepared({"color_map": "map.jpg", "color": asked, "tolerance": 40}).inputs.tensors["0"]
    assert half[:, :8].min() > 0.9
    assert half[:, 9:].max() < 0.1


def test_a_colour_that_is_nowhere_near(workdir: Path) -> None:
    Image.new("RGB", (16, 16), (0, 0, 255)).save("map.png")
    with pytest.raises(BadInput, match=r"the nearest are #0000ff \[0, 0, 255\]$"):
        prepared({"color_map": "map.png", "color": RED})
    with pytest.raises(BadInput, match=r"^protect\.0\.color: "):
        prepared(init_image="map.png", denoise=0.5, protect=[{"color_map": "map.png", "color": RED}])


@given(tolerance=st.integers(0, 255), color=st.tuples(*[st.integers(0, 255)] * 3), seed=st.integers(0, 99))
def test_tolerance_is_the_largest_difference_of_a_channel(
    tolerance: int, color: tuple[int, int, int], seed: int
) -> None:
    photo = torch.randint(0, 256, (8, 8, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    wanted = (photo.int() - torch.tensor(color)).abs().amax(dim=-1) <= tolerance
    assert torch.equal(masks.from_color_map((8, 8), photo, color, tolerance), wanted.float())


def test_pixels_that_just_miss_a_colour_are_a_warning(workdir: Path) -> None:
    """As at the edges and in the noise of a JPEG; a few, as on a soft edge, are not worth a word."""
    photo = torch.zeros(100, 100, 3, dtype=torch.uint8)
    photo[:50] = torch.tensor([250, 0, 0], dtype=torch.uint8)
    photo[0] = torch.tensor([245, 9, 0], dtype=torch.uint8)
    assert near_misses(photo, (250, 0, 0), 0) == 0
    photo[:10] = photo[0].clone()
    assert near_misses(photo, (250, 0, 0), 0) == 1000
    assert near_misses(photo, (250, 0, 0), 9) == 0
    Image.fromarray(photo.numpy()).save("map.png")
    assert prepared({"color_map": "map.png", "color": [250, 0, 0]}).warnings() == [
        "regions.0.mask.color: 1000 pixels are within 16 of [250, 0, 0] and do not count as this colour "
        "(tolerance is 0)"
    ]


@pytest.mark.parametrize("written", ["#ff8800", "#FF8800", "#f80", [255, 136, 0]])
def test_ways_to_write_a_colour(written: Any) -> None:
    job = job_with({"color_map": "map.png", "color": written})
    assert job_hash(resolve(job)) == job_hash(resolve(job_with({"color_map": "map.png", "color": [255, 136, 0]})))
    assert job.model_dump(mode="json")["regions"][0]["mask"]["color"] == [255, 136, 0]


@pytest.mark.parametrize("written", ["ff8800", "#ff88", "#gg8800", "orange", None, 7, [1, 2], {"r": 1}])
def test_colours_that_are_none(written: Any) -> None:
    """None is what YAML makes of `color: #ff8800`: the rest is a comment."""
    with pytest.raises(BadJob) as error:
        job_with({"color_map": "map.png", "color": written})
    (mistake,) = error.value.mistakes
    assert isinstance(mistake, BadInput)
    assert mistake.field == "regions.0.mask.color"
    assert 'in quotes, as "#ff8000" or "#f80"' in mistake.allowed


# --- what is no image ------------------------------------------------------------------------------------

SVG = '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>'
NO_IMAGES: dict[str, tuple[bytes, str]] = {
    "empty.png": (b"", "empty.png is empty"),
    "text.png": ("white is inside, ü".encode(), "text.png is a text file, not an image"),
    "wide.txt": ("white is inside".encode("utf-16"), "wide.txt is a text file"),
    "drawing.svg": (SVG.encode(), "drawing.svg is an SVG drawing: export it as PNG"),
    "page.png": (b"<!DOCTYPE html><html><body>404</body></html>", "page.png is a web page, not an image"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "phone.heic": (
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64),
        "phone.heic is a HEIC image that is not",
    ),
    "paper.pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "paper.pdf is a PDF: export it as PNG"),
    "layers.psd": (b"8BPS\0\1" + bytes(20), "layers.psd is a Photoshop document: export it as PNG"),
    "noise.png": (bytes(range(200, 256)) * 4, "noise.png is no image file that can be read: "),
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_a_file_that_is_no_image_is_told_what_it_is(name: str, workdir: Path) -> None:
    data, says = NO_IMAGES[name]
    Path(name).write_bytes(data)
    assert says in str(refused(name))


@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WebP"])
def test_a_file_that_is_cut_off(kind: str, share: float, workdir: Path) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    Path("part").write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * share)])
    assert str(refused("part")).endswith(f"part is a {kind} file that is damaged or cut off")


@pytest.mark.timeout(20)
def test_what_is_no_file_is_not_read(workdir: Path) -> None:
    """A pipe without a writer would hold whoever opens it."""
    os.mkfifo("pipe.png")
    Path("folder.png").mkdir()
    Path("device.png").symlink_to("/dev/zero")
    settings.cache_clear()
    os.environ["REGIONAL_ASSET_ROOTS"] = f"{workdir},/dev"
    for name, says in {
        "pipe.png": "is a pipe, and no image file",
        "folder.png": "is a folder, and no image file",
        "device.png": "is a device, and no image file",
        "none.png": f"does not exist (looked for at {workdir}/none.png)",
        "pipe.png/x.png": f"does not exist (looked for at {workdir}/pipe.png/x.png)",
    }.items():
        assert str(refused(name)) == f"regions.0.mask.image: {name} {says}"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("http://example.org/mask.png", "http://example.org/mask.png"),
        ("https://example.org/mask.png?size=large", "https:…"),
        ("HTTPS://example.org/mask.png", "https:…"),
        ("https://hunter2@example.org/mask.png", "https:…"),
    ],
)
def test_the_web_is_not_read(address: str, shown: str, workdir: Path) -> None:
    error = not_allowed(address)
    assert error.value == shown
    assert "REGIONAL_ASSET_ROOTS" in error.allowed
    assert error.allowed.endswith("nothing is downloaded from the web: download it first")


def test_other_schemes_are_not_read(workdir: Path) -> None:
    assert not_allowed("data:image/png;base64,AAAA").allowed.endswith("nothing is read of data:")


@pytest.mark.e2e
def test_an_object_store_has_folders_and_gaps_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(tmp_path, "images") as port:
        endpoint = f"http://127.0.0.1:{port}"
        buffer = io.BytesIO()
        quarters(128, 128).save(buffer, "PNG")
        for key, data in {"masks/map.png": buffer.getvalue(), "masks/empty.png": b""}.items():
            client(endpoint).put_object(Bucket="images", Key=key, Body=data)
        for name, value in {"ENDPOINT": endpoint, "KEY": KEY, "SECRET": SECRET}.items():
            monkeypatch.setenv(f"REGIONAL_S3_{name}", value)
        monkeypatch.setenv("REGIONAL_ASSET_ROOTS", "s3://images")
        settings.cache_clear()
        assert prepared({"image": "s3://images/masks/map.png"}).warnings() == []
        for name, says in {
            "masks": "is a folder, and no image file",
            "masks/none.png": "does not exist",
            "masks/empty.png": "is empty",
        }.items():
            assert str(refused(f"s3://images/{name}")) == f"regions.0.mask.image: s3://images/{name} {says}"


def test_what_is_too_large_says_which_limit(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quarters(64, 64).save("map.png")
    for name, limit, says in (
        ("REGIONAL_MAX_MASK_BYTES", "20", "an image file of at most 20 bytes (REGIONAL_MAX_MASK_BYTES)"),
        ("REGIONAL_MAX_MASK_PIXELS", "4095", "an image of at most 4095 pixels (REGIONAL_MAX_MASK_PIXELS; 64 x 64"),
        ("REGIONAL_MAX_IMAGE_PIXELS", "4095", "images of at most 4095 pixels together (REGIONAL_MAX_IMAGE_PIXELS"),
    ):
        with monkeypatch.context() as limited:
            limited.setenv(name, limit)
            settings.cache_clear()
            assert says in not_allowed("map.png").allowed


# --- memory ----------------------------------------------------------------------------------------------

EDGE = 2000


def noisy(mode: str) -> Image.Image:
    """Squares of random colours: a plain image would leave decoders much that they do not touch."""
    small = np.random.default_rng(0).integers(0, 256, (EDGE // 10, EDGE // 10, 4), dtype=np.uint8)
    image = Image.fromarray(small).resize((EDGE, EDGE), Image.Resampling.NEAREST)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(np.asarray(image)[..., 0].astype(np.int32) * 257)
    return image if mode == "RGBA" else image.convert(mode)


TURNED = Image.Exif()
TURNED[0x0112] = 6
KINDS_IN_MEMORY: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bits": ("1", "PNG", {}),
    "palette": ("P", "PNG", {}),
    "colours": ("RGB", "PNG", {}),
    "layer": ("RGBA", "PNG", {}),
    "grey layer": ("LA", "PNG", {}),
    "deep": ("I;16", "PNG", {}),
    "turned png": ("RGBA", "PNG", {"exif": TURNED}),
    "jpeg": ("RGB", "JPEG", {}),
    "turned jpeg": ("RGB", "JPEG", {"exif": TURNED}),
    "progressive": ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
    "progressive inks": ("CMYK", "JPEG", {"progressive": True, "subsampling": 0}),
    "webp": ("RGBA", "WEBP", {}),
    "lossless webp": ("RGBA", "WEBP", {"lossless": True, "method": 0}),
    "gif": ("P", "GIF", {}),
    "bmp": ("RGB", "BMP", {}),
    "lzw": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    "one strip": ("RGBA", "TIFF", {"compression": "tiff_adobe_deflate", "tiffinfo": {278: EDGE}}),
    "deep strip": ("I", "TIFF", {"compression": "tiff_adobe_deflate", "tiffinfo": {278: EDGE}}),
}


@pytest.mark.parametrize("what", KINDS_IN_MEMORY)
def test_no_image_takes_more_memory_than_its_header_says(what: str) -> None:
    """That is what the limit compares."""
    mode, kind, options = KINDS_IN_MEMORY[what]
    buffer = io.BytesIO()
    noisy(mode).save(buffer, kind, **options)
    data, memory = buffer.getvalue(), Memory()
    unpacked(data, EDGE * EDGE)
    grown = memory.grown()
    os.environ["REGIONAL_MAX_IMAGE_BYTES"] = "1"
    settings.cache_clear()
    with pytest.raises(TooLargeError) as error:
        unpacked(data, EDGE * EDGE)
    assert grown < int(error.value.allowed.split()[-1][:-1]) + 4 * 2**20


def test_a_webp_of_90_bytes_is_refused_for_what_it_unpacks_to(workdir: Path) -> None:
    """It had fewer pixels than one image may have, and 1.4 GB behind it."""
    Path("plain.webp").write_bytes(BOMBS["webp_plain"])
    assert len(BOMBS["webp_plain"]) < 100
    memory = Memory()
    assert "REGIONAL_MAX_IMAGE_BYTES" in not_allowed("plain.webp").allowed
    assert memory.grown() < 50_000_000


def test_long_texts_and_profiles_are_not_unpacked_with_the_image() -> None:
    texts = PngInfo()
    for i in range(200):
        texts.add_text(f"t{i}", "x" * 1_000_000, zip=True)
    buffer = io.BytesIO()
    quarters(16, 16).save(buffer, "PNG", pnginfo=texts)
    memory = Memory()
    with pytest.raises(Exception, match="text chunks"):
        unpacked(buffer.getvalue(), 10**6)
    assert memory.grown() < 100_000_000


def test_what_took_a_files_place_after_it_was_looked_at_is_not_read(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe without a writer blocks whoever opens it as a file."""
    quarters(16, 16).save("photo.png")
    os.mkfifo("pipe.png")
    with os.fdopen(open_regular("photo.png"), "rb") as file:
        assert file.read(4) == b"\x89PNG"
    check = regular_files._check

    def swapped(mode: int) -> None:
        check(mode)
        if Path("pipe.png").exists():
            Path("pipe.png").replace("photo.png")

    monkeypatch.setattr(regular_files, "_check", swapped)
    with pytest.raises(NoRegularFileError, match="a pipe"):
        open_regular("photo.png")


@pytest.mark.parametrize("scans", [80, 200])
def test_a_jpeg_of_many_scans_is_refused(scans: int) -> None:
    """Each of 40 bytes goes over the whole image again: 32 MB of them take hours. Cameras write ten."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG", progressive=True)
    *_, last = re.finditer(b"\xff\xda", buffer.getvalue())
    content, end = buffer.getvalue()[:-2], buffer.getvalue()[-2:]
    # What lies in a segment, or behind the end, is no scan: phones put whole videos there.
    comment = b"\xff\xfe" + (2 + 400).to_bytes(2, "big") + b"\xff\xda" * 200
    data = content[:2] + comment + content[2:] + content[last.start() :] * scans + end + b"\xff\xda" * 200
    if scans == 80:
        assert unpacked(data, 64 * 64).shape == (64, 64, 3)
        return
    with pytest.raises(TooLargeError, match=r"at most 100 scans"):
        unpacked(data, 64 * 64)


def test_a_photo_of_several_pictures_is_its_first_one() -> None:
    buffer = io.BytesIO()
    one, other = (Image.new("RGB", (32, 16), color) for color in ("red", "blue"))
    one.save(buffer, "MPO", save_all=True, append_images=[other])
    assert unpacked(buffer.getvalue(), 10**6)[8, 16].argmax() == 0
