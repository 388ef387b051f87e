"""Why a tensor is left in float, or coded otherwise than its rule says: causes with their text."""

from __future__ import annotations

from enum import Enum

__all__ = ["Cause", "Reason"]


class Cause(Enum):
    """What programs ask for; the value is the text for people, with places for details."""

    NO_RULE = "no rule matches it"
    RULE = "kept by rule {}"
    DTYPE = "{} values are kept exactly"
    EMPTY = "it is empty"
    PARAMETRIZED = "it feeds a parametrization{}; remove that to code the weight it makes{}"
    BUFFER = "it is a buffer of {}"
    BIAS = "biases are kept"
    VECTOR = "a vector of {} is kept"
    NO_MATRIX = "it is none of the matrices that {} multiplies by"
    NO_MODULE = "its name is of no module"
    NO_LAYER_KIND = "no layer kind takes {}"
    EMBEDDING = "an embedding, kept: embeddings=True clusters it"
    FLOAT_WEIGHTS = "weights are left in float: {}"
    END_LAYER = "{} layer, left in float"
    FALLBACK = "instead of {}: {}"  # the method of the rule, and why it cannot be used
    BIAS_TRAINED = "a bias, with the weights"
    BIAS_OF_START = "a bias, on the levels of its start"
    VECTOR_TRAINED = "a vector, on a grid of {} bits"


class Reason(str):
    """A text with its cause: prints and serializes as a string.

    >>> Reason(Cause.RULE, "'linear'")
    "kept by rule 'linear'"
    """

    cause: Cause
    details: tuple[str, ...]

    def __new__(cls, cause: Cause, *details: str) -> Reason:
        """Fill the places of the cause's text with ``details``."""
        return _restored(cause.value.format(*details), cause, details)

    def noted(self, note: str) -> Reason:
        """Return the reason with a note on what else happened to the tensor."""
        return _restored(f"{self}; {note}", self.cause, self.details)

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (str(self), self.cause, self.details)


def _restored(text: str, cause: Cause, details: tuple[str, ...]) -> Reason:
    made = str.__new__(Reason, text)
    made.cause, made.details = cause, details
    return made
