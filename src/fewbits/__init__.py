"""fewbits: compress trained PyTorch networks to the smallest file at the accuracy you want.

>>> import fewbits
>>> coded = fewbits.compress(model, fewbits.Qronos(bits=4), calibration=loader)  # doctest: +SKIP
>>> coded.save("net.fewbits")                                                  # doctest: +SKIP
>>> model = fewbits.load("net.fewbits", into=model)                            # doctest: +SKIP

Names are imported on first use, so ``import fewbits`` and ``fewbits.inspect`` do not need torch.
Once transformers is imported, before or after, its ``from_pretrained`` reads coded weights.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .hub.hook import register_when_imported

if TYPE_CHECKING:
    from .api import compress, load, load_tensor, plan
    from .coding import CODECS
    from .compression.coded_model import CodedModel
    from .compression.deltas.adapters import compress_adapter
    from .compression.deltas.delta import apply_delta, encode_delta
    from .compression.result import CompressionResult
    from .compression.sensitivity import LayerHarm, sensitivity
    from .container import FileInfo, inspect
    from .engine.paged.paging import empty_weights
    from .errors import (
        BudgetError,
        CalibrationError,
        ClusterError,
        ConfigError,
        CorruptFileError,
        FewbitsError,
        MissingExtraError,
        ModelError,
        RankError,
        SourceError,
        TargetError,
    )
    from .evaluation import METRICS
    from .evaluation.weight_noise import NoisyEvaluation, ensemble, noise_resilience
    from .exporters import EXPORTERS, export
    from .hub import from_pretrained
    from .methods import (
        GPFQ,
        GPTQ,
        HEMP,
        METHODS,
        PWFN,
        RDOQ,
        Activations,
        LowBit,
        Nearest,
        Qronos,
        Transform,
    )
    from .methods.schedule import Ramp
    from .progress import ProgressEvent
    from .recipe.plan import Plan
    from .recipe.recipe import Recipe, Rule
    from .recipe.training_config import Training
    from .training import Tuner, prepare

__version__ = "0.2.0"

__all__ = [
    "CODECS",
    "EXPORTERS",
    "GPFQ",
    "GPTQ",
    "HEMP",
    "METHODS",
    "METRICS",
    "PWFN",
    "RDOQ",
    "Activations",
    "BudgetError",
    "CalibrationError",
    "ClusterError",
    "CodedModel",
    "CompressionResult",
    "ConfigError",
    "CorruptFileError",
    "FewbitsError",
    "FileInfo",
    "LayerHarm",
    "LowBit",
    "MissingExtraError",
    "ModelError",
    "Nearest",
    "NoisyEvaluation",
    "Plan",
    "ProgressEvent",
    "Qronos",
    "Ramp",
    "RankError",
    "Recipe",
    "Rule",
    "SourceError",
    "TargetError",
    "Training",
    "Transform",
    "Tuner",
    "apply_delta",
    "compress",
    "compress_adapter",
    "empty_weights",
    "encode_delta",
    "ensemble",
    "export",
    "from_pretrained",
    "inspect",
    "load",
    "load_tensor",
    "noise_resilience",
    "plan",
    "prepare",
    "sensitivity",
]

_HOMES = {
    ".api": ("compress", "load", "load_tensor", "plan"),
    ".coding": ("CODECS",),
    ".container": ("FileInfo", "inspect"),
    ".errors": tuple(name for name in __all__ if name.endswith("Error")),
    ".methods": (
        "GPFQ",
        "GPTQ",
        "HEMP",
        "METHODS",
        "PWFN",
        "RDOQ",
        "Activations",
        "LowBit",
        "Nearest",
        "Qronos",
        "Transform",
    ),
    ".compression.coded_model": ("CodedModel",),
    ".compression.deltas.adapters": ("compress_adapter",),
    ".compression.deltas.delta": ("apply_delta", "encode_delta"),
    ".compression.result": ("CompressionResult",),
    ".engine.paged.paging": ("empty_weights",),
    ".compression.sensitivity": ("LayerHarm", "sensitivity"),
    ".recipe.plan": ("Plan",),
    ".progress": ("ProgressEvent",),
    ".recipe.recipe": ("Recipe", "Rule"),
    ".evaluation": ("METRICS",),
    ".exporters": ("EXPORTERS", "export"),
    ".hub": ("from_pretrained",),
    ".evaluation.weight_noise": ("NoisyEvaluation", "ensemble", "noise_resilience"),
    ".methods.schedule": ("Ramp",),
    ".recipe.training_config": ("Training",),
    ".training": ("Tuner", "prepare"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fewbits' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


register_when_imported()
