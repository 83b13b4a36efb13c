"""Small image files that claim, or unpack to, far too much: name -> bytes."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image

EDGE = 100_000


def _png(edge: int) -> bytes:
    header = struct.pack(">IIBBBBB", edge, edge, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(10 * (edge + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _png_with_profile(size: int) -> bytes:
    """A picture of 8 x 8 pixels whose colour profile unpacks to `size` bytes."""
    small = _saved("PNG")
    return small[:33] + _chunk(b"iCCP", b"a\0\0" + _deflated_zeros(size)) + small[33:]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _deflated_zeros(size: int) -> bytes:
    """So many zeros as zlib packs them, the same megabyte again and again: packing them all would take seconds."""
    packer = zlib.compressobj(9, wbits=-15)
    megabyte = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    last = packer.compress(bytes(size % 2**20)) + packer.flush()
    adler32 = size % 65521 << 16 | 1
    return b"\x78\xda" + megabyte * (size >> 20) + last + struct.pack(">I", adler32)


def _gif(screen: int, frame: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", screen, screen, 0x80, 0, 0) + bytes(6)
    return head + b"\x2c" + struct.pack("<HHHHB", 0, 0, frame, frame, 0) + b"\x02\x02\x4c\x01\x00\x3b"


def _bmp(edge: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, edge, edge, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + info + bytes(46)


def _webp(edge: int) -> bytes:
    data = bytearray(_saved("WEBP", lossless=True))
    at = data.index(b"VP8L") + 9
    flags = struct.unpack("<I", data[at : at + 4])[0] >> 28 << 28
    data[at : at + 4] = struct.pack("<I", flags | (edge - 1) | (edge - 1) << 14)
    return bytes(data)


def _jpeg(edge: int) -> bytes:
    data = bytearray(_saved("JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", edge, edge)
    return bytes(data)


def _tiff(edge: int, tile: int) -> bytes:
    """A grey image in one deflated tile."""
    body = _deflated_zeros(tile * min(tile, 20_000))
    tags = {256: edge, 257: edge, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 0, 325: len(body)}
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, start if tag == 324 else of) for tag, of in tags.items())
    return b"II*\x00" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + body


def _saved(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 255).save(buffer, kind, **options)
    return buffer.getvalue()


BOMBS = {
    "png": _png(EDGE),
    "png_profile": _png_with_profile(60_000_000),
    "gif": _gif(65_535, 65_535),
    "gif_frame": _gif(8, 65_535),
    "bmp": _bmp(EDGE),
    "webp": _webp(16_383),
    "webp_plain": _webp(8000),
    "jpeg": _jpeg(65_500),
    "tiff": _tiff(EDGE, 256),
    "tiff_tile": _tiff(64, 20_000),
}
