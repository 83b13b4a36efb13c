"""Python imports this where it begins, in processes that have this folder in PYTHONPATH: Stable Diffusion then has the
networks of `benchmarks.standing_in` once it is imported, and workers run the real flows, in their resident processes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_FAMILY = "prefect_regional_diffusion.sampling_core.models.families.stable_diffusion"


class _LoaderWithStandIns(Loader):
    """Executes the module as its own loader does, and changes its class then."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        from benchmarks.standing_in import put_in_place_of

        put_in_place_of(module.StableDiffusion)


class _Finder(MetaPathFinder):
    """Finds the one module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _FAMILY:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _LoaderWithStandIns(spec.loader)
        return spec


sys.meta_path.insert(0, _Finder())
