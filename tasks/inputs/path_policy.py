"""Which places a job may name: images and models under `asset_roots`, stores and output folders under theirs.

A name is checked and resolved in one go, and what was resolved is what is opened: links and `..` are followed
before the comparison, not after it.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from prefect_regional_diffusion.sampling_core.errors import BadInput
from prefect_regional_diffusion.tasks.machine.model_catalog import catalog
from prefect_regional_diffusion.tasks.machine.settings import ANYWHERE, settings
from prefect_regional_diffusion.tasks.machine.store_settings import store_settings

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_PLAIN_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+)://[A-Za-z0-9._@-]*(:\d+)?(/[A-Za-z0-9._=+ -]+)*")
_WITH_PASSWORD = re.compile(r"://[^@]*:[^@]*@")
_OBJECT_STORES = ("s3", "gs", "gcs", "az", "abfs", "abfss")
"""Stores that images may come from: a request there goes to an endpoint that the job does not choose."""
_LONGEST = 4096
"""Characters of a path, as Linux has it. To resolve a longer one, part by part, is work."""
_WEB = ("http", "https", "ftp")
_caller_is_trusted: ContextVar[bool] = ContextVar("_caller_is_trusted", default=False)


@contextmanager
def trust_caller() -> Generator[None]:
    """Within the block all places are allowed, as on one's own command line: the caller wrote the names."""
    token = _caller_is_trusted.set(True)
    try:
        yield
    finally:
        _caller_is_trusted.reset(token)


def image_place(field: str, name: str) -> str:
    """Real path, or URL in an object store, of an image that a job names. Raises BadInput."""
    allowed = f"a readable image file under {_setting_text('REGIONAL_ASSET_ROOTS', settings().asset_roots)}"
    scheme = name.partition(":")[0].lower()
    if is_url(name) and scheme not in _OBJECT_STORES:
        # An address may have a secret in it.
        shown = name if _PLAIN_URL.fullmatch(name) and "@" not in name else f"{scheme}:…"
        reason = (
            "nothing is downloaded from the web: download it first"
            if scheme in _WEB
            else f"nothing is read of {scheme}:"
        )
        raise BadInput(field, shown, f"{allowed}, or an object in a store ({', '.join(_OBJECT_STORES)}); {reason}")
    return _inside(field, name, settings().asset_roots, allowed)


def model_place(field: str, name: str, rule: str = "") -> str:
    """Real path of a model, or of what a link in its folder leads to; or its URL in a bucket. Raises BadInput."""
    folders = settings().model_folders
    allowed = f"`embedded`, or a model under {_setting_text('REGIONAL_ASSET_ROOTS', settings().asset_roots)}"
    if folders:
        allowed += f" or {_setting_text('REGIONAL_MODEL_FOLDERS', folders)}"
    return _weights_place(field, name, f"{allowed}, {rule}" if rule else allowed)


def _weights_place(field: str, name: str, allowed: str) -> str:
    """Real path of a model's file under the roots, or its URL in a bucket that models may be fetched from."""
    of_catalog = _catalog_roots()
    if settings().catalog_block:
        of_catalog_text = _setting_text("roots of the catalog", of_catalog or ("none",))
        allowed += f"; or under {of_catalog_text} (REGIONAL_CATALOG_ROOTS)"
    if not is_url(name):
        return _inside(field, name, (*settings().asset_roots, *settings().model_folders, *of_catalog), allowed)
    stores = (*settings().model_stores, *of_catalog)
    allowed += f"; or s3://bucket/name under {_setting_text('REGIONAL_MODEL_STORES', stores or ('none',))}"
    if _PLAIN_URL.fullmatch(name) is None or "@" in name:
        # An address may have a secret in it.
        raise BadInput(field, f"{name.partition(':')[0]}:…", allowed)
    if not name.startswith("s3://"):
        raise BadInput(field, name, allowed)
    return _inside(field, name, stores, allowed)


def _catalog_roots() -> list[str]:
    """Roots of the catalog of models that this machine lets it have: a server's block gives jobs no others."""
    places: list[str] = []
    for root in catalog().roots:
        with suppress(BadInput):
            places.append(_inside("roots", root, settings().catalog_roots, "under REGIONAL_CATALOG_ROOTS"))
    return places


def embedding_places(name: str) -> list[str]:
    """Real paths at which a textual inversion may lie: in a folder, or in its `embeddings`.

    The folders are the working directory and the roots. What is not under a root, also by a link, is none.
    """
    roots = [root for root in settings().asset_roots if root != ANYWHERE and not is_url(root)]
    folders = dict.fromkeys([".", *roots])
    places: list[str] = []
    for path in (str(Path(root, part, name)) for root in folders for part in ("", "embeddings")):
        with suppress(BadInput):
            places.append(_inside("prompt", path, settings().asset_roots, "under REGIONAL_ASSET_ROOTS"))
    return places


def lora_place(field: str, name: str) -> str:
    """Real path of a LoRA's file, or its URL in a bucket. Raises BadInput."""
    folders = settings().model_folders
    allowed = f"a .safetensors file under {_setting_text('REGIONAL_ASSET_ROOTS', settings().asset_roots)}"
    if folders:
        allowed += f" or {_setting_text('REGIONAL_MODEL_FOLDERS', folders)}"
    return _weights_place(field, name, allowed)


def adapter_place(field: str, name: str) -> str:
    """Real path of the file of an IP-Adapter. Raises BadInput."""
    return _local_place(field, name, "a .safetensors file")


def image_encoder_place(field: str, name: str) -> str:
    """Real path of the folder of an image encoder, or of a file that a link in it leads to. Raises BadInput."""
    return _local_place(field, name, "a folder with config.json and model.safetensors")


def _local_place(field: str, name: str, what: str) -> str:
    allowed = f"{what} under {_setting_text('REGIONAL_ASSET_ROOTS', settings().asset_roots)}"
    place = _inside(field, name, settings().asset_roots, allowed)
    if is_url(place):
        raise BadInput(field, name, allowed)
    return place


def control_place(field: str, name: str) -> str:
    """Real path of a ControlNet or T2I-Adapter, or of a file that a link in its folder leads to. Raises BadInput."""
    roots = _setting_text("REGIONAL_ASSET_ROOTS", settings().asset_roots)
    allowed = f"a folder or a .safetensors file of a ControlNet or T2I-Adapter under {roots}"
    place = _inside(field, name, settings().asset_roots, allowed)
    if is_url(place):
        raise BadInput(field, name, allowed)
    return place


def store_place(url: str | None) -> str:
    """Folder or URL of the store that a run asked for; None: the machine's own. Raises BadInput."""
    own_store = store_settings().store
    allowed = f"a place under {_setting_text('REGIONAL_ALLOWED_STORES', (own_store, *settings().allowed_stores))}"
    return _inside(
        "store",
        _as_path(url or own_store),
        [_as_path(root) for root in (own_store, *settings().allowed_stores)],
        allowed,
    )


def out_place(folder: str | None) -> str:
    """Folder for pictures that a run asked for; None: the machine's own. Raises BadInput."""
    own_folder = store_settings().out
    allowed = f"a folder under {_setting_text('REGIONAL_ALLOWED_OUTPUTS', (own_folder, *settings().allowed_outputs))}"
    if folder:
        return _inside("out", folder, (own_folder, *settings().allowed_outputs), allowed)
    return _plain_url("out", own_folder, allowed) if is_url(own_folder) else own_folder


def is_url(name: str) -> bool:
    """Whether a name has a scheme."""
    return _URL.match(name) is not None


def _as_path(url: str) -> str:
    """`file:///folder` as the folder's path; other URLs as they are."""
    return url.removeprefix("file://") if url.startswith("file:///") else url


def _inside(field: str, name: str, roots: Iterable[str], allowed: str) -> str:
    """The real path or the URL behind a name, which must lie under one of the roots."""
    place = _resolve(field, name, allowed)
    if _caller_is_trusted.get():
        return place
    for root in roots:
        if root == ANYWHERE:
            return place
        top = _resolve(field, root, allowed)
        if is_url(top) != is_url(place):
            continue
        if place == top or place.startswith(top.rstrip("/") + "/"):
            return place
    raise BadInput(field, name, allowed)


def _resolve(field: str, name: str, allowed: str) -> str:
    if len(name) > _LONGEST:
        raise BadInput(field, name, f"a name of at most {_LONGEST} characters")
    if is_url(name):
        return _plain_url(field, name, allowed)
    if "::" in name or name.startswith(("~", "//", "\\\\")) or not name.isprintable():
        raise BadInput(field, name, allowed)
    try:
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            Path(name).lstat()  # a name that is too long is resolved, and then fails wherever it is used
        return str(Path(name).resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise BadInput(field, name, allowed) from error


def _plain_url(field: str, url: str, allowed: str) -> str:
    """A URL if it is plain: no credentials, no chain, no query, nothing encoded, no `..`."""
    scheme = url.partition(":")[0]
    if any(part.count(":") > 1 for part in url.split("@")[:-1]):
        advice = "a URL without credentials (set REGIONAL_S3_KEY and REGIONAL_S3_SECRET, or REGIONAL_STORE_BLOCK)"
        raise BadInput(field, f"{scheme}:…", advice)
    url = url.rstrip("/") if not url.endswith("://") else url
    if _PLAIN_URL.fullmatch(url) is None or {".", ".."} & set(url.split("/")):
        # The URL is not repeated: it may have a secret in it.
        raise BadInput(field, f"{scheme}:…", f"{allowed}, spelled plainly")
    return url


def _setting_text(name: str, roots: Iterable[str]) -> str:
    places = ", ".join(roots)
    # The settings are lists: a password with a comma is in two items, and neither looks like an address any more.
    return name if _WITH_PASSWORD.search(places) else f"{name} ({places})"
