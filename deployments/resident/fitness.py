"""Whether a process that imported the libraries some time ago is what a new one would be."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path

import prefect_regional_diffusion

_READ_LATE = ("REGIONAL_", "AWS_", "COLUMNS", "LINES")
"""Beginnings of environment variables that nothing keeps from the time of its import; `readline` sets the last two, the
terminal's size, behind Python's back."""
_SETTINGS = "PREFECT_"
"""Prefect's own can be read again, but a flow keeps some defaults from the time when it was declared."""
_OF_A_RUN = "PREFECT__"
_DEPLOYMENT = f"{_OF_A_RUN}DEPLOYMENT_ID"
VERSION = f"{_OF_A_RUN}DEPLOYMENT_VERSION"
"""Environment variable in which `process_worker` tells a run's process the version of its deployment."""
_ROOTS = sorted({Path(folder).resolve() for folder in prefect_regional_diffusion.__path__})

Code = frozenset[tuple[str, int, int]]


def code_on_disk() -> Code:
    """What tells one state of the code from another: path, time of change (ns) and size of all modules of this package,
    and of the folders into which packages are installed."""
    # The package's folder has links to its parts beside it.
    folders = [link.resolve() for root in _ROOTS for link in root.iterdir() if link.is_dir()]
    files = [file for root in (*_ROOTS, *folders) for file in root.rglob("*.py")]
    installed = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    return frozenset(map(_state, {*files, *installed}))


def _state(path: Path) -> tuple[str, int, int]:
    try:
        stat = path.stat()
    except OSError:  # it has just been removed
        return str(path), 0, 0
    return str(path), stat.st_mtime_ns, stat.st_size


def without_run(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what Prefect tells the process of one run."""
    return {name: value for name, value in environment.items() if not name.startswith(_OF_A_RUN)}


def deployment_of(environment: Mapping[str, str]) -> tuple[str, str]:
    """Id and version of the deployment that a run was made of; empty where there is none."""
    return environment.get(_DEPLOYMENT, ""), environment.get(VERSION, "")


def adopt(environment: Mapping[str, str]) -> None:
    """Be what a new process with that environment would be, once its libraries are imported: settings and logging."""
    from prefect.context import refresh_global_settings_context
    from prefect.logging.configuration import setup_logging

    from prefect_regional_diffusion.flows.common.environment import set_defaults
    from prefect_regional_diffusion.tasks.machine.settings import settings

    os.environ.clear()
    os.environ.update(environment)
    set_defaults()
    settings.cache_clear()
    refresh_global_settings_context()
    setup_logging(incremental=False)


def differing(ours: Mapping[str, str], theirs: Mapping[str, str], *, has_flows: bool) -> list[str]:
    """Names of variables whose values differ, and which libraries, or flows if these are there, may have read."""
    free = _READ_LATE if has_flows else (*_READ_LATE, _SETTINGS)
    return sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name) and not name.startswith(free)
    )
