"""Everything fewbits raises on purpose.

::

    FewbitsError
    ├── ConfigError (ValueError)        a setting, a recipe or an argument is out of range
    │   └── TargetError                 a pattern matches nothing, or matches what cannot be coded
    ├── ModelError                      the network: non-finite weights, wrong architecture
    ├── CalibrationError                the data: empty, wrong shape, a forward that raises
    ├── SourceError                     a model or data source that cannot be found or read
    ├── BudgetError                     no file within the budget was found
    ├── CorruptFileError                a file that is damaged, hostile, or not ours
    ├── WorkerError (ChildProcessError) a process that was to share the work ended early
    └── MissingExtraError (ImportError) an optional dependency is not installed

and the warnings::

    FewbitsWarning (UserWarning)
    ├── CoverageWarning                 less than half of the weights are quantized
    └── LossWarning                     something of a compressed network does not go on

Every message says what failed, where, what was received, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "BudgetError",
    "CalibrationError",
    "ConfigError",
    "CorruptFileError",
    "CoverageWarning",
    "FewbitsError",
    "FewbitsWarning",
    "LossWarning",
    "MissingExtraError",
    "ModelError",
    "SourceError",
    "TargetError",
    "WorkerError",
    "did_you_mean",
    "require",
]


class FewbitsError(Exception):
    """Base of all errors of this package."""


class ConfigError(FewbitsError, ValueError):
    """A setting, a recipe or an argument is not acceptable."""


class TargetError(ConfigError):
    """A target pattern matches nothing that can be compressed."""


class ModelError(FewbitsError):
    """The network cannot be compressed or loaded as it is."""


class CalibrationError(FewbitsError):
    """The calibration data, or the forward pass on it, failed."""


class SourceError(FewbitsError):
    """A model or data source cannot be found or read."""


class BudgetError(FewbitsError):
    """No evaluated file is within the budget; nothing is kept."""


class CorruptFileError(FewbitsError):
    """A file is truncated, damaged, hostile, or not a fewbits file."""


class WorkerError(FewbitsError, ChildProcessError):
    """A worker process could not be started, or ended before its task was done."""


class MissingExtraError(FewbitsError, ImportError):
    """An optional dependency is needed for what was asked."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f'Run: pip install "fewbits[{extra}]"'
        )


class FewbitsWarning(UserWarning):
    """Base of the warnings that have a category of their own."""


class CoverageWarning(FewbitsWarning):
    """Less than half of the weights of a compressed network are quantized."""


class LossWarning(FewbitsWarning):
    """Something that a compressed network holds does not go on: a grid, a codebook, ..."""


def require(condition: bool, name: str, expected: str, got: object) -> None:
    """Raise a :class:`ConfigError` of one fixed shape unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{name} must be {expected}. Got {got!r} instead.")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x' or 'y'?"``, or an empty string when nothing is near."""
    near = get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
