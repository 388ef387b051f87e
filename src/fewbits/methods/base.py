"""What a method is: frozen settings, declared capabilities, and one verb."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from typing_extensions import TypeIs

from ..engine.layers.layer import LayerMatrix, Quantized
from ..errors import ConfigError, did_you_mean, require, shorten
from ..registry import Registry
from .schedule import Ramp
from .trained.base import Session, TunedWeight

__all__ = [
    "INPUTS",
    "METHODS",
    "AnyMethod",
    "Capabilities",
    "Method",
    "PostTrainingMethod",
    "TrainingMethod",
    "as_method",
    "from_settings",
    "is_method",
    "post_training_methods",
    "to_settings",
    "training_methods",
    "trains",
    "with_slope",
]

INPUTS = ("none", "quantized", "both")


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a method needs and what it does; the same for all of its settings.

    Attributes:
        needs_inputs: which inputs of a layer it looks at: "none", those of the network "quantized"
            so far, or "both", those of the float network too.
        needs_gradients: whether it reads ``LayerMatrix.sensitivity``, from gradients of the output.
        needs_labels: whether it needs labelled data, for the loss of a training.
        trains: whether it trains (:class:`TrainingMethod`) or rounds (:class:`PostTrainingMethod`).
        has_slope: whether it has the setting ``slope``, which a search for a budget varies.
        quantizes_activations: whether it can quantize inputs of layers too.
        keeps_levels: of a training: weights that start quantized keep their levels.
        merges_batchnorm: of a training: running statistics are merged into gain and bias at the
            end.
    """

    needs_inputs: str = "none"
    needs_gradients: bool = False
    needs_labels: bool = False
    trains: bool = False
    has_slope: bool = False
    quantizes_activations: bool = False
    keeps_levels: bool = False
    merges_batchnorm: bool = True

    def __post_init__(self) -> None:
        known = self.needs_inputs in INPUTS
        require(known, "needs_inputs", f"one of {', '.join(INPUTS)}", self.needs_inputs)

    @property
    def needs_data(self) -> bool:
        """Whether calibration data is needed."""
        return self.needs_inputs != "none" or self.needs_gradients

    @property
    def needs(self) -> str:
        """What is needed, in words."""
        if self.trains:
            return "training data" + (" with labels" if self.needs_labels else "")
        if not self.needs_data:
            return "nothing"
        return "calibration data" + (", for gradients too" if self.needs_gradients else "")

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


@runtime_checkable
class Method(Protocol):
    """A way to compress weights: a frozen, keyword-only dataclass registered in ``METHODS``.

    Attributes:
        name: under which it is registered.
        summary: one line on what it does and when to use it.
        paper: where it comes from.
        capabilities: what it needs and does.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    capabilities: ClassVar[Capabilities]


class PostTrainingMethod(Method, Protocol):
    """A method that rounds one weight after the other. Derive from it for the defaults."""

    def encode(self, layer: LayerMatrix) -> Quantized:
        """Quantize one weight. Never changes ``layer``; the same layer gives the same result."""
        ...

    @property
    def absorbs_scales(self) -> bool:
        """Whether scaling a row leaves its error alone, so that BatchNorm can be folded first."""
        return self.capabilities.needs_gradients

    @property
    def fallback_settings(self) -> Mapping[str, Any]:
        """Settings of ``Nearest`` for weights whose inputs cannot be seen."""
        return {}


class TrainingMethod(Method, Protocol):
    """A method that trains. Derive from it for the defaults."""

    def start(self, weights: Sequence[TunedWeight], seed: int = 0) -> Session:
        """Begin on the weights of one network."""
        ...

    def kept(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return which of a network's weights stay as they are, each with the reason."""
        return {}

    @property
    def needs_calibration(self) -> bool:
        """Whether ranges of activations start from calibration data."""
        return False

    @property
    def trains_biases(self) -> bool:
        """Whether biases get the same levels as the weights beside them."""
        return False

    @property
    def trains_embeddings(self) -> bool:
        """Whether embedding tables are trained where ``trains_biases``."""
        return True

    @property
    def remeasures_batchnorm(self) -> bool:
        """Whether BatchNorm statistics are measured again at the end."""
        return False


AnyMethod: TypeAlias = PostTrainingMethod | TrainingMethod

METHODS: Registry[type[AnyMethod]] = Registry("method", "fewbits.methods")


def is_method(value: object) -> TypeIs[AnyMethod]:
    """Tell whether ``value`` is a method with settings, not its class or name."""
    return isinstance(value, Method) and not isinstance(value, type)


def as_method(value: AnyMethod | str) -> AnyMethod:
    """Return a method; for its name, the method with default settings.

    Raises:
        ConfigError: no method of this name, or something else, such as the class of a method.
    """
    if isinstance(value, str):
        return METHODS[value]()
    if is_method(value):
        return value
    raise ConfigError(
        "method must be a method such as fewbits.GPFQ(bits=4), or a method's name. "
        f"Got {shorten(value)} instead."
    )


def post_training_methods() -> list[str]:
    """Return the names of the registered methods that do not train."""
    return [name for name, kind in METHODS.items() if not kind.capabilities.trains]


def training_methods() -> list[str]:
    """Return the names of the registered methods that train."""
    return [name for name, kind in METHODS.items() if kind.capabilities.trains]


def trains(method: AnyMethod | None) -> TypeIs[TrainingMethod]:
    """Tell whether ``method`` trains; None does not."""
    return method is not None and method.capabilities.trains


def with_slope(method: AnyMethod, slope: float) -> AnyMethod:
    """Return the method at another slope; as it is where it has none."""
    if not method.capabilities.has_slope:
        return method
    return replace(method, slope=slope)  # type: ignore[type-var]


def to_settings(method: AnyMethod) -> dict[str, Any]:
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


def from_settings(settings: Mapping[str, Any]) -> AnyMethod:
    """Build the method that :func:`to_settings` described.

    Raises:
        ConfigError: no method of this name, a setting it does not have, or a value out of range.
    """
    rest = dict(settings)
    name = rest.pop("method", None)
    if not isinstance(name, str):
        raise ConfigError(
            f"method settings need a name under the key 'method'. Got {shorten(settings)}."
        )
    kind = METHODS[name]
    known = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    for key in rest:
        if key not in known:
            raise ConfigError(
                f"the method {name!r} has no setting {shorten(key)}. Valid settings: "
                f"{', '.join(known)}." + did_you_mean(str(key), known)
            )
    return kind(**rest)
