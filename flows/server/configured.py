"""Whether a server may be configured for Prefect, without importing Prefect, which takes a second."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path


def may_be_configured() -> bool:
    """False if none of the sources of Prefect's settings names a server; else Prefect itself has to resolve them.

    The sources are variables, files in this folder, and the profiles in Prefect's home.
    """
    if any(name.upper().startswith(("PREFECT_API", "PREFECT_PROFILE")) for name in os.environ):
        return True
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    try:
        return (
            Path("prefect.toml").exists()
            or _mentions(Path(".env"), "prefect_")
            or _mentions(home / "profiles.toml", "prefect_api")
            or "prefect" in tomllib.loads(_text(Path("pyproject.toml"))).get("tool", {})
        )
    except (OSError, ValueError):
        return True  # Prefect's own error says what is wrong with a file


def _mentions(file: Path, prefix: str) -> bool:
    return prefix in _text(file).lower()


def _text(file: Path) -> str:
    """Of a file; nothing if there is none."""
    return file.read_text(encoding="utf-8") if file.exists() else ""
