"""Files that a hostile writer might send: one for each number, and the judgement of the reader.

A case follows from (seed, number) alone, so that a case which ends its process can be made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from fewbits.coded import RawTensor
from fewbits.container import decode, measure
from fewbits.container.limits import default_limit
from fewbits.errors import CorruptFileError
from fuzz_mutations import MAKERS
from fuzz_seeds import Seed, seeds

__all__ = ["MODES", "Case", "Seed", "judge", "make_case", "seeds"]

MODES = ("raw", "header", "streams")
SMALL_LIMIT = 1 << 23  # most cases: a small bound of the decoded size keeps them quick


@dataclass(frozen=True)
class Case:
    """One mutated file, the seed it stems from, and the bound it is read with."""

    number: int
    mode: str
    seed: Seed
    data: bytes
    limit: int


def same(a: Any, b: Any) -> bool:
    """Return whether two contents are equal to the bit, order of tensors included."""
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    if is_dataclass(a):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def make_case(pool: list[Seed], seed: int, number: int) -> Case:
    """Return case ``number`` of the run with this seed: the same whenever it is made."""
    rng = np.random.default_rng([seed, number])
    mode = MODES[number % len(MODES)]
    origin = pool[int(rng.integers(len(pool)))]
    data = MAKERS[mode](origin, rng)
    limit = default_limit(len(data)) if rng.random() < 1 / 8 else SMALL_LIMIT
    return Case(number, mode, origin, data, limit)


def _hidden(error: BaseException | None) -> list[str]:
    """Return the names of the errors below a CorruptFileError that the reader turned into it."""
    found = []
    while error is not None:
        if not isinstance(error, CorruptFileError):
            found.append(type(error).__name__)
        error = error.__cause__
    return found


def judge(case: Case) -> tuple[str, list[str]]:
    """Read the case: "refused", "same" or "different", and the errors that a refusal wraps.

    Raises whatever else happens: an AssertionError where the reader contradicts itself, a
    MemoryError also where the reader had made a refusal of it.
    """
    try:
        found = decode(case.data, max_decoded_bytes=case.limit)
    except CorruptFileError as error:
        hidden = _hidden(error)
        if "MemoryError" in hidden or "PanicException" in hidden:
            raise MemoryError(f"the reader hid {hidden}: {error}") from error
        _sizes(case)
        return "refused", hidden
    if measure(case.data).file_bytes != len(case.data):
        raise AssertionError("the size report does not sum to the file")
    for tensor in found.tensors.values():
        size = int(np.prod(tensor.shape, dtype=np.float64))
        if not isinstance(tensor, RawTensor) and size <= 1 << 16:
            with np.errstate(all="ignore"):
                if tensor.dequantize().shape != tensor.shape:
                    raise AssertionError("a tensor has another shape than it says")
    if same(found, case.seed.contents):
        return "same", []
    if case.mode == "raw":
        raise AssertionError("damage was not noticed: the contents differ")
    return "different", []


def _sizes(case: Case) -> None:
    """Read the header alone; whatever it says of a refused file, it may only refuse, too."""
    try:
        measure(case.data)
    except CorruptFileError as error:
        if "MemoryError" in _hidden(error):
            raise MemoryError(f"the reader hid a MemoryError: {error}") from error
