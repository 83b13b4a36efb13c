"""Fixtures of all tests. Shapes and types of the core are checked at every call while tests run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

import tests.typechecking

# Before anything imports the core: every annotated call in it is then checked, shapes included.
install_import_hook("sampling_core", f"{tests.typechecking.__name__}.checked")

# Set before torch and Prefect are imported; see flows.cli for the reasons.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that default folders land in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Prefect home of its own for processes that tests start."""
    yield tmp_path_factory.mktemp("prefect")
