"""The interface of methods: frozen settings, declared capabilities, and one main function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from typing_extensions import TypeIs

from ..engine.layers.layer import LayerMatrix, Levels, Quantized
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
]

INPUTS = ("none", "quantized", "both")


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a method needs and can do, regardless of its settings.

    Attributes:
        needs_inputs: the inputs of a layer that it uses: "none"; "quantized", those in the network
            as quantized so far; or "both", those in the float network too.
        needs_gradients: whether it uses ``LayerMatrix.sensitivity``, from gradients of the output.
        codes_lookups: whether sensitivity is all that it needs of a weight whose rows are looked up
            (an embedding, or one that is tied to the output layer); else it needs inputs.
        needs_labels: whether it needs labelled data, for the training loss.
        trains: whether it trains (:class:`TrainingMethod`) or rounds (:class:`PostTrainingMethod`).
        has_slope: whether it has the setting ``slope``, which a search for a budget varies. If it
            needs gradients, None may stand for the slope that they suggest.
        has_levels: whether it has the setting ``levels``, whose number a search for a budget varies
            where no method of the recipe has a slope.
        takes_levels: for methods that round: whether a weight can get the levels of another file,
            ``LayerMatrix.levels``.
        quantizes_activations: whether it can also quantize the inputs of layers.
        keeps_levels: for training methods: whether weights that start quantized keep their levels.
        merges_batchnorm: for training methods: whether BatchNorm's running statistics are merged
            into its gain and bias at the end.
    """

    needs_inputs: str = "none"
    needs_gradients: bool = False
    codes_lookups: bool = False
    needs_labels: bool = False
    trains: bool = False
    has_slope: bool = False
    has_levels: bool = False
    takes_levels: bool = False
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
        """The required data, in words."""
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
        name: the name under which it is registered.
        summary: one line on what it does and when to use it.
        paper: the publication it follows.
        capabilities: what it needs and can do.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    capabilities: ClassVar[Capabilities]


class PostTrainingMethod(Method, Protocol):
    """A method that rounds one weight after the other. Subclass it to get the defaults."""

    def encode(self, layer: LayerMatrix) -> Quantized:
        """Quantize one weight. Must be deterministic and must not modify ``layer``."""
        ...

    @property
    def absorbs_scales(self) -> bool:
        """Whether scaling a row does not affect its relative error, so BatchNorm can be folded."""
        return self.capabilities.needs_gradients

    @property
    def rounds_neurons_apart(self) -> bool:
        """Whether a neuron's levels and steps depend on no other neuron of its layer.

        Then ranks share a layer, and ``encode`` is called with some of the neurons.
        """
        return False

    @property
    def output_metric(self) -> str:
        """The metric of the output that sensitivities are measured in."""
        return "auto"

    @property
    def fallback_settings(self) -> Mapping[str, Any]:
        """Settings of ``Nearest`` for weights whose inputs cannot be observed."""
        return {}

    def refuses(self, levels: Levels) -> str:
        """Return why a weight cannot be given these levels, if the method takes any; else ""."""
        return ""

    def remark(self, columns: int) -> str:
        """Return what the user should know of a weight with so many columns; "" for nothing."""
        return ""


class TrainingMethod(Method, Protocol):
    """A method that trains. Subclass it to get the defaults."""

    def start(self, weights: Sequence[TunedWeight], seed: int = 0) -> Session:
        """Start a session on the weights of one network."""
        ...

    def kept(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return the weights that are left in float, each with the reason."""
        return {}

    @property
    def starts_from(self) -> str:
        """The recipe whose result is the better start, with these settings; "" for the floats.

        ``fewbits train`` and :func:`fewbits.compress` begin there unless they are told otherwise.
        """
        return ""

    @property
    def note_from_floats(self) -> str:
        """What to tell who trains from float weights with these settings; "" for nothing."""
        return ""

    @property
    def needs_calibration(self) -> bool:
        """Whether activation ranges are initialized from calibration data."""
        return False

    @property
    def trains_biases(self) -> bool:
        """Whether biases are quantized to the same levels as the weights."""
        return False

    @property
    def trains_embeddings(self) -> bool:
        """Whether embedding tables are trained too, if ``trains_biases``."""
        return True

    @property
    def remeasures_batchnorm(self) -> bool:
        """Whether BatchNorm statistics are re-estimated at the end."""
        return False


AnyMethod: TypeAlias = PostTrainingMethod | TrainingMethod


def _problem(kind: Any) -> str | None:
    """Return what keeps a class from being a method; None where nothing does."""
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return "a frozen dataclass of its settings"
    capabilities: Any = getattr(kind, "capabilities", None)
    if not isinstance(capabilities, Capabilities):
        return "a class with capabilities, a fewbits.methods.Capabilities"
    base = TrainingMethod if capabilities.trains else PostTrainingMethod
    verb = "start" if capabilities.trains else "encode"
    own = {name for owner in kind.__mro__ if owner is not base for name in vars(owner)}
    if base not in kind.__mro__ or verb not in own:
        return f"derived from fewbits.methods.{base.__name__}, with a method {verb!r} of its own"
    if capabilities.has_slope and "slope" not in {entry.name for entry in fields(kind)}:
        return "one with a setting 'slope', as its capabilities say"
    if capabilities.has_levels and "levels" not in {entry.name for entry in fields(kind)}:
        return "one with a setting 'levels', as its capabilities say"
    return None


def _check_method(name: str, kind: type[AnyMethod]) -> None:
    expected = _problem(kind)
    require(expected is None, f"the method {name!r}", str(expected), kind)
    require(kind.name == name, f"the name of the method {name!r}", repr(name), kind.name)


METHODS: Registry[type[AnyMethod]] = Registry("method", "fewbits.methods", _check_method)


def is_method(value: object) -> TypeIs[AnyMethod]:
    """Return whether ``value`` is a method with settings, not a class or a name."""
    if isinstance(value, type) or not isinstance(value, Method):
        return False
    return _problem(type(value)) is None


def as_method(value: AnyMethod | str) -> AnyMethod:
    """Return a method as it is, or build one with default settings from its name.

    Raises:
        ConfigError: unknown name, or a value of another kind, such as the class of a method.
    """
    if isinstance(value, str):
        return METHODS[value]()
    if is_method(value):
        return value
    raise ConfigError(
        "method must be a method such as fewbits.GPFQ(bits=4), or the name of one. "
        f"Got {shorten(value)} instead."
    )


def post_training_methods() -> list[str]:
    """Return the names of the registered methods that do not train."""
    return [name for name, kind in METHODS.items() if not kind.capabilities.trains]


def training_methods() -> list[str]:
    """Return the names of the registered methods that train."""
    return [name for name, kind in METHODS.items() if kind.capabilities.trains]


def trains(method: AnyMethod | None) -> TypeIs[TrainingMethod]:
    """Return whether ``method`` trains; None does not."""
    return method is not None and method.capabilities.trains


def to_settings(method: AnyMethod) -> dict[str, Any]:
    """Return ``{"method": name, ...}`` with bits or slope, and all settings except defaults."""
    values = {entry.name: _plain(getattr(method, entry.name)) for entry in fields(method)}  # type: ignore[arg-type]
    defaults = {entry.name: _plain(entry.default) for entry in fields(method)}  # type: ignore[arg-type]
    always = {"slope"} if values.get("levels") is not None else {"bits", "slope"}
    always = {key for key in always if values.get(key) is not None}
    listed = {k: value for k, value in values.items() if k in always or value != defaults[k]}
    return {"method": method.name, **listed}


def _plain(value: Any) -> Any:
    """Convert to what JSON and YAML can write: schedules to mappings, tuples to lists."""
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
    """Build a method from the mapping that :func:`to_settings` returns.

    Raises:
        ConfigError: unknown method, unknown setting, or a value out of range.
    """
    rest = dict(settings)
    name = rest.pop("method", None)
    if not isinstance(name, str):
        raise ConfigError(
            f"settings of a method must name it under the key 'method'. Got {shorten(settings)}."
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
