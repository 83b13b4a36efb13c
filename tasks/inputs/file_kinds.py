"""The kind of a file that is no readable image, recognised by its first bytes."""

from __future__ import annotations

import codecs

_HEAD = 1024
_CUT_OFF = "is a {} file that is damaged or cut off"
_READABLE = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8": "JPEG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}
_OTHERS = {
    b"8BPS": "a Photoshop document",
    b"gimp xcf": "a GIMP document",
    b"%PDF": "a PDF",
    b"\0\0\x01\0": "an icon",
    b"\xff\x0a": "a JPEG XL image",
    b"\0\0\0\x0cJXL ": "a JPEG XL image",
    b"v/1\x01": "an OpenEXR image",
    b"PK\x03\x04": "a ZIP archive, as those of Krita and OpenRaster are",
}
_BRANDS = {b"hei": "a HEIC image", b"hev": "a HEIC image", b"mif1": "a HEIC image", b"avi": "an AVIF image"}


def unreadable_kind(data: bytes) -> str:
    """The kind as a phrase, such as "is an SVG drawing: export it as PNG"; empty if it is unknown."""
    head = data[:_HEAD]
    for magic, kind in _READABLE.items():
        if head.startswith(magic):
            return _CUT_OFF.format(kind)
    if (head[:4], head[8:12]) == (b"RIFF", b"WEBP"):
        return _CUT_OFF.format("WebP")
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return _CUT_OFF.format("BMP")
    if head[4:8] == b"ftyp":
        kind = next((kind for brand, kind in _BRANDS.items() if head[8:12].startswith(brand)), "a video or an image")
        return f"is {kind} that is not read here: export it as PNG or JPEG"
    other = next((kind for magic, kind in _OTHERS.items() if head.startswith(magic)), None)
    return f"is {other}: export it as PNG" if other else _textual_kind(head)


def _textual_kind(head: bytes) -> str:
    is_utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        # The last character may have been cut.
        text = codecs.getincrementaldecoder("utf-16" if is_utf16 else "utf-8")().decode(head).lstrip("\ufeff")
    except UnicodeDecodeError:
        return ""
    if not all(letter.isprintable() or letter.isspace() for letter in text):
        return ""
    lowered = text.lower()
    if "<svg" in lowered:
        return "is an SVG drawing: export it as PNG"
    if lowered.lstrip().startswith(("<!doctype html", "<html")):
        return "is a web page, not an image: download the image that is on it"
    if text.startswith("version https://git-lfs"):
        return "is a pointer of Git LFS: fetch the image with git lfs pull"
    return "is a text file, not an image"
