"""Register with transformers when, and only if, it is imported.

transformers has no entry points for quantizers, and importing it takes seconds. So a finder waits
for its module of quantizers, lets the other finders load it, and registers afterwards.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # ``import fewbits`` is quick
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["register_when_imported"]

_QUANTIZERS = "transformers.quantizers.auto"


def register_when_imported() -> None:
    """Register fewbits with transformers now if it has its quantizers, or else once it has."""
    if _QUANTIZERS in sys.modules:
        _register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds one module, by the other finders, and registers after it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of the module of quantizers; None for all others."""
        if fullname != _QUANTIZERS:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            self._register_after(spec.loader)
        return spec

    def _register_after(self, loader: Any) -> None:
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            loader.exec_module = run
            run(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                _register()

        loader.exec_module = exec_module


def _register() -> None:
    from .quantizer import register  # noqa: PLC0415  (needs transformers)

    register()
