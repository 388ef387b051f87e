"""The errors and warnings of fewbits.

::

    FewbitsError
    ├── ConfigError (ValueError)        a setting, a recipe or an argument is out of range
    │   └── TargetError                 a pattern matches nothing, or matches what cannot be coded
    ├── ModelError                      the network: non-finite weights, wrong architecture
    ├── CalibrationError                the data: empty, wrong shape, a forward that raises
    ├── SourceError                     a model or data source that cannot be found or read
    ├── BudgetError                     no file within the budget was found
    ├── RankError                       another process of the group is gone or failed
    ├── ClusterError                    machines that points run on cannot be reached, or went away
    ├── CorruptFileError                a file that is damaged, hostile, or not a fewbits file
    └── MissingExtraError (ImportError) an optional dependency is not installed

and the warnings::

    FewbitsWarning (UserWarning)
    ├── CoverageWarning                 less than half of the weights are quantized
    └── LossWarning                     part of a compressed network is not carried over

Every message says what failed, where, what was received, and what to do.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any, TypeGuard

__all__ = [
    "BudgetError",
    "CalibrationError",
    "ClusterError",
    "ConfigError",
    "CorruptFileError",
    "CoverageWarning",
    "FewbitsError",
    "FewbitsWarning",
    "LossWarning",
    "MissingExtraError",
    "ModelError",
    "RankError",
    "SourceError",
    "TargetError",
    "did_you_mean",
    "is_number",
    "require",
    "shorten",
]

_LONGEST = 4000  # characters of a message
_LONGEST_VALUE = 300
_LONGEST_WORD = 100


class FewbitsError(Exception):
    """Base of all errors of this package. Messages over 4,000 characters are cut in the middle."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(_cut(a, _LONGEST) if isinstance(a, str) else a for a in args))


class ConfigError(FewbitsError, ValueError):
    """A setting, a recipe or an argument is invalid."""


class TargetError(ConfigError):
    """A target pattern matches nothing that can be compressed."""


class ModelError(FewbitsError):
    """The network cannot be compressed or loaded as it is."""


class CalibrationError(FewbitsError):
    """The calibration data, or the forward pass on it, failed."""


class SourceError(FewbitsError):
    """A model or data source cannot be found or read."""


class BudgetError(FewbitsError):
    """No evaluated file is within the budget; no file is written."""


class RankError(FewbitsError):
    """A process that shares the work is gone, failed, or does something else."""


class ClusterError(FewbitsError):
    """A cluster cannot be reached or went away, or points failed on it.

    Attributes:
        finished: results of the finished points, where they are not kept in a file.
        failed: name of each point that failed, with its error.
    """

    def __init__(
        self, message: str, finished: Sequence[Any] = (), failed: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.finished, self.failed = list(finished), dict(failed or {})


class CorruptFileError(FewbitsError):
    """A file is truncated, damaged, hostile, or not a fewbits file."""


class MissingExtraError(FewbitsError, ImportError):
    """An optional dependency is needed and not installed."""

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
    """Part of a compressed network, such as a grid or a codebook, is not carried over."""


def require(condition: bool, name: str, expected: str, got: object) -> None:
    """Raise a :class:`ConfigError` with a standard message unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{name} must be {expected}. Got {shorten(got)} instead.")


def is_number(value: object) -> TypeGuard[float]:
    """Return whether ``value`` is a number that fits a finite float; booleans do not count."""
    try:
        return (
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        )
    except OverflowError:
        return False


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x' or 'y'?"``, or an empty string if nothing is close."""
    if len(word) > _LONGEST_WORD:
        return ""
    near = get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def shorten(value: object) -> str:
    """Return an abbreviated ``repr(value)``, with bounded time and length for any value.

    >>> shorten([1, "two", {"three": 3}])
    "[1, 'two', {'three': 3}]"
    >>> len(shorten("x" * 10**6)) < 400
    True
    """
    return _cut(_SHORT.repr(value), _LONGEST_VALUE)


class _Short(reprlib.Repr):
    """Show a few levels, a few entries of each, and both ends of long values."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 8
        self.maxstring = self.maxother = self.maxlong = _LONGEST_WORD

    def repr_int(self, x: int, level: int) -> str:
        """Show a huge integer by its size, because printing its digits takes quadratic time."""
        return repr(x) if x.bit_length() <= 256 else f"<an integer of {x.bit_length()} bits>"

    def repr_dict(self, x: Mapping[Any, Any], level: int) -> str:
        """Keep the order of the keys."""
        if level <= 0 and x:
            return "{...}"
        pairs = islice(x.items(), self.maxdict)
        parts = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in pairs]
        return "{" + ", ".join(parts + ["..."] * (len(x) > self.maxdict)) + "}"

    def repr_bytes(self, x: bytes, level: int) -> str:
        """Cut before formatting, not after."""
        return repr(x) if len(x) <= _LONGEST_WORD else f"{x[:_LONGEST_WORD]!r}..."

    def repr_instance(self, x: Any, level: int) -> str:
        """Use the repr of the class, except for mappings, which may be as deep as a dict."""
        if isinstance(x, Mapping):
            return self.repr_dict(x, level)
        if isinstance(x, int) and not isinstance(x, bool):
            return self.repr_int(x, level) if x.bit_length() > 256 else repr(x)
        if isinstance(x, str):
            return self.repr_str(x, level)
        return _cut(_safe_repr(x), _LONGEST_VALUE)


_SHORT = _Short()


def _safe_repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # a user's class may raise, and so does one that holds a huge integer
        return f"<{type(value).__name__}>"


def _cut(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    kept = (longest - 40) // 2
    return f"{text[:kept]} ... ({len(text) - 2 * kept:,} characters) ... {text[-kept:]}"
