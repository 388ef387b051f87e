"""What a method is: a frozen value with settings and one verb, filed under a name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

from ..engine.layers.layer import LayerMatrix, Quantized
from ..errors import ConfigError, did_you_mean, shorten
from ..registry import Registry
from .schedule import Ramp
from .trained.base import TRAINED, TrainedMethod

__all__ = [
    "GRADIENTS",
    "METHODS",
    "NEEDS",
    "Method",
    "from_settings",
    "gradients_of",
    "to_settings",
    "trained_from_settings",
]

T = TypeVar("T")

NEEDS = ("nothing", "inputs", "both")
GRADIENTS = ("", "rows")


@runtime_checkable
class Method(Protocol):
    """A way to quantize one weight: a frozen, keyword-only dataclass registered in ``METHODS``.

    Attributes:
        name: under which it is registered.
        summary: one line on what it does and when to use it.
        paper: where it comes from.
        needs: "nothing", "inputs" (X~ of the network quantized so far) or "both" (X and X~).

    A method may also have ``gradients``, a ClassVar as ``needs``: "rows" for
    ``LayerMatrix.sensitivity``; "" without.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[str]

    def encode(self, layer: LayerMatrix) -> Quantized:
        """Quantize one weight. Never changes ``layer``; the same layer gives the same result."""
        ...


METHODS: Registry[type[Method]] = Registry("method", "fewbits.methods")


def gradients_of(method: Method | None) -> str:
    """Return what ``method`` asks for of the gradients: one of ``GRADIENTS``."""
    return str(getattr(method, "gradients", ""))


def to_settings(method: Method | TrainedMethod) -> dict[str, Any]:
    """Return ``{"method": name, ...}``, bits or slope where set, and what is not at its default."""
    values = {entry.name: _plain(getattr(method, entry.name)) for entry in fields(method)}  # type: ignore[arg-type]
    defaults = {entry.name: _plain(entry.default) for entry in fields(method)}  # type: ignore[arg-type]
    told = {"slope"} if values.get("levels") is not None else {"bits", "slope"}
    told = {key for key in told if values.get(key) is not None}
    changed = {k: value for k, value in values.items() if k in told or value != defaults[k]}
    return {"method": method.name, **changed}


def _plain(value: Any) -> Any:
    """Return what JSON and YAML can write: schedules as mappings, tuples as lists."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Ramp):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return float(value)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def from_settings(settings: Mapping[str, Any]) -> Method:
    """Build the method that :func:`to_settings` described; see :func:`trained_from_settings`.

    Raises:
        ConfigError: no method of this name, a setting it does not have, or a value out of range.
    """
    return _built(METHODS, settings)


def trained_from_settings(settings: Mapping[str, Any]) -> TrainedMethod:
    """Build the method that trains which :func:`to_settings` described. Raises as the other."""
    return _built(TRAINED, settings)


def _built(registry: Registry[type[T]], settings: Mapping[str, Any]) -> T:
    rest = dict(settings)
    name = rest.pop("method", None)
    if not isinstance(name, str):
        raise ConfigError(
            f"method settings need a name under the key 'method'. Got {shorten(settings)}."
        )
    if name not in METHODS and name not in TRAINED:
        raise METHODS.unknown(name, TRAINED)
    kind = registry[name]
    known = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    for key in rest:
        if key not in known:
            raise ConfigError(
                f"the method {name!r} has no setting {shorten(key)}. It has: {', '.join(known)}."
                + did_you_mean(str(key), known)
            )
    return kind(**rest)
