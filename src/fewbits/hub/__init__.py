"""Load networks from folders and from the Hugging Face Hub; names are imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .loading import from_pretrained
    from .mixin import Mixin

__all__ = ["Mixin", "from_pretrained"]

_HOMES = {"Mixin": ".mixin", "from_pretrained": ".loading"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
