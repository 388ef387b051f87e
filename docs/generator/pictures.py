"""The pictures of the documentation, by the name of their file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import method_pictures, rate_picture, running_pictures

__all__ = ["PICTURES"]

PICTURES: dict[str, Callable[[], dict[str, Any]]] = {
    name: getattr(module, name)
    for module, names in (
        (rate_picture, ["rate_accuracy"]),
        (method_pictures, method_pictures.__all__),
        (running_pictures, running_pictures.__all__),
    )
    for name in names
}
