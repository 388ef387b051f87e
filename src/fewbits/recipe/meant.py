"""What was meant by a name that other tools know, such as "int8" or "gptq4": as code that works."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from ..methods import METHODS, training_methods

__all__ = ["Meant", "meant"]

_LONGEST = 40
_FLOATS = ("half", "bf16", "bfloat16")
_WORDS = {"rtn": "nearest", "round": "nearest", "optq": "gptq"}
_ADVICE = (
    "Weights are quantized to 2 to 8 bits, such as by the method nearest with bits=8. To store "
    "what is left in float in half the bytes, use a recipe with raw_dtype: float16."
)
_WIDTH = re.compile(r"(?:u?int|i|w|q|nf|fp|float)?[-_ ]?(\d{1,2})(?:[-_ ]?bits?)?(?:[-_].*)?")
_BOTH = re.compile(r"w(\d{1,2})[-_]?a(\d{1,2})")
_METHOD = re.compile(r"([a-z]+?)(?:[-_ ]?(?:w|int)?(\d{1,2})(?:[-_ ]?bits?)?)?")


@dataclass(frozen=True)
class Meant:
    """A method with the bits of weights and inputs, as far as they are known.

    Without a method, ``advice`` says what to do instead.
    """

    method: str = ""
    bits: int | None = None
    activations: int | None = None
    advice: str = ""

    @property
    def code(self) -> str:
        """A sentence with the arguments for :func:`fewbits.compress`."""
        if not self.method:
            return f" {self.advice}"
        kind = METHODS[self.method]
        made = f"METHODS[{self.method!r}]"
        if kind.__module__.startswith("fewbits."):
            made = kind.__name__
        data = ", data" if kind.capabilities.needs_data else ""
        told, bits = "", "" if self.bits is None else f"bits={self.bits}"
        if bits and not _has_bits(self.method):
            told, bits = f", target_{bits}", ""
        elif self.activations is not None:
            told = f", activations={self.activations}"
        return f" Did you mean fewbits.compress(model, fewbits.{made}({bits}){data}{told})?"

    @property
    def options(self) -> str:
        """A sentence with the options of ``fewbits compress``."""
        if not self.method:
            return f" {self.advice}"
        also = "" if self.activations is None else f" --activations {self.activations}"
        width = "--bits" if _has_bits(self.method) else "--target-bits"
        bits = "" if self.bits is None else f" {width} {self.bits}"
        return f" Did you mean --method {self.method}{bits}{also}?"


def meant(name: object) -> Meant | None:
    """Return what ``name`` means elsewhere; None if nothing is known."""
    word = str(name).removeprefix("torch.").lower()
    if len(word) > _LONGEST:
        return None
    found = next((one for read in (_method, _inputs_too, _width) if (one := read(word))), None)
    if word in _FLOATS or (found is not None and not _is_possible(found)):
        return Meant(advice=_ADVICE)
    return found


def _method(word: str) -> Meant | None:
    """Read the name of a method, with or without its bits: GPTQ, rtn, gptq-4bit."""
    found = _METHOD.fullmatch(word)
    if found is None:
        return None
    method = _WORDS.get(found[1], found[1])
    known = method in METHODS and method not in training_methods()
    return Meant(method, None if found[2] is None else int(found[2])) if known else None


def _inputs_too(word: str) -> Meant | None:
    """Read the bits of weights and of their inputs: w4a8."""
    found = _BOTH.fullmatch(word)
    return None if found is None else Meant("gpfq", int(found[1]), int(found[2]))


def _width(word: str) -> Meant | None:
    """Read the bits of weights alone: int8, 8bit, q4_k_m, ternary."""
    found = _WIDTH.fullmatch("2" if word == "ternary" else word)
    return None if found is None else Meant("nearest", int(found[1]))


def _is_possible(found: Meant) -> bool:
    widths = (found.bits, found.activations)
    return all(width is None or 2 <= width <= 8 for width in widths)


def _has_bits(method: str) -> bool:
    return "bits" in {field.name for field in fields(METHODS[method])}  # type: ignore[arg-type]
