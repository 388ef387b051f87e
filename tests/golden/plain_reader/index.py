"""SPEC.md 2, 2.1 and 2.2: the index, its names and its entries."""

import json
import math

from .fields import Refused, need
from .values import FLOATS, WIDTHS

KEYS = set("ntbaqgvmcl")
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
OPTIONS = {"g": "dmlpo", "a": "dmlp", "c": "dmlpb", "t": "dlcbe", "r": "ds"}


def _unique(pairs):
    need(len(dict(pairs)) == len(pairs), "a key occurs twice")
    return dict(pairs)


def _integer(text):
    need(len(text) <= 64, "an integer is too long")
    return int(text)


def _float(text):
    need(math.isfinite(float(text)), "a number is beyond float64")
    return float(text)


def _constant(text):
    raise Refused(f"{text} is no JSON")


def _depth(value):
    inner = list(value.values()) if isinstance(value, dict) else value
    return 1 + max(map(_depth, inner), default=0) if isinstance(inner, list) else 0


def parse(text, minor):
    """Return the object of the JSON ``text``."""
    try:
        index = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
        )
    except (ValueError, RecursionError) as error:
        raise Refused(f"the index is no JSON: {error}") from error
    need(isinstance(index, dict) and _depth(index) <= 32, "the index is no object of 32 levels")
    need(minor > 0 or set(index) <= KEYS, "the index has an unknown key")
    return index


def names(packed):
    """Return front-coded names."""
    out, parts = [], []
    for text in packed:
        need(isinstance(text, str) and text[:1] in DIGITS and text, "a name is malformed")
        shared = DIGITS.index(text[0])
        need(shared <= len(parts), "a name shares more than there is")
        parts = parts[:shared] + text[1:].split(".")
        out.append(".".join(parts))
        need(len(out[-1].encode("utf-8", "surrogatepass")) <= 1024, "a name is too long")
    need(len(set(out)) == len(out), "a name occurs twice")
    return out


def sizes(value):
    """Return a shape, checked."""
    need(isinstance(value, list) and len(value) <= 16, "a shape is no list of at most 16")
    need(all(type(size) is int and 0 <= size <= 2**48 for size in value), "a size is out of bounds")
    need(math.prod(size for size in value if size) <= 2**48, "a shape is too large")
    return value


class Entry:
    """What the index says of one tensor; the reader adds what its streams hold."""

    def __init__(self, value, books):
        need(isinstance(value, list) and len(value) in (2, 3), "an entry is malformed")
        self.kind, shape, options = [*value, {}][:3]
        need(self.kind in OPTIONS, "a kind is unknown")
        need(isinstance(options, dict), "options are no object")
        need(set(options) <= set(OPTIONS[self.kind]), "an option is unknown")
        self.shape, self.values = sizes(shape), math.prod(shape)
        self.dtype = options.get("d", "float32")
        need(self.dtype in (WIDTHS if self.kind == "r" else FLOATS), "a dtype is unknown")
        self.layout = self._layout(options.get("l"))
        if self.kind == "r":
            self.stored = options.get("s", self.dtype)
            known = self.stored == self.dtype or {self.stored, self.dtype} <= set(FLOATS)
            need(known, "the stored dtype cannot stand for the other")
            self.width = WIDTHS[self.stored]
        elif self.kind == "t":
            self._transform(options, books)
        else:
            self._matrix(options, books)

    def _layout(self, value):
        if value is None:
            return None
        need(isinstance(value, list) and len(value) == 2, "a layout is malformed")
        split, axes = map(sizes, value)
        need(math.prod(split) == self.values, "a layout has another size")
        need(sorted(axes) == list(range(len(split))), "a layout does not permute")
        return split, axes

    def _matrix(self, options, books):
        first = self.shape[0] if self.shape else 1
        rows, columns = sizes(options.get("m", [first, math.prod(self.shape[1:])]))
        need(rows * columns == self.values, "a matrix has another size than its tensor")
        self.matrix = rows, columns
        per = options.get("p")
        need(per in ({None, "s", "r"} if self.kind == "c" else {None, "r"}), "p is unknown")
        self.factors = {"s": 1, "r": rows, None: 0 if self.kind == "c" else 1}[per]
        self.offset, self.book = options.get("o", 0), options.get("b", 0)
        self.offsets = {"s": 1, "r": rows}.get(self.offset, 0)
        if self.kind == "a":
            self.offsets = self.factors
        elif self.kind == "c":
            need(type(self.book) is int and 0 <= self.book < books, "there is no such codebook")
        elif self.offset not in ("s", "r"):
            need(type(self.offset) is int and abs(self.offset) <= 2**33, "an offset is wrong")

    def _transform(self, options, books):
        need({"c", "b"} <= set(options), "a transform lacks a factor")
        self.parts = [Entry(options["c"], books), Entry(options["b"], books)]
        coefficients, basis = self.parts
        need(coefficients.kind in ("g", "c") and basis.kind == "g", "a factor is of a wrong kind")
        need(len(coefficients.shape) == len(basis.shape) == 2, "a factor is no matrix")
        self.side = options.get("e", 0)
        need(self.side in (0, 1) and type(self.side) is int, "e is unknown")
        self.factors_in_order = self.parts if self.side else self.parts[::-1]
        left, right = self.factors_in_order
        need(left.shape[1] == right.shape[0], "factors do not multiply")
        need(left.shape[0] * right.shape[1] == self.values, "factors give another size")

    def leaves(self):
        """Return the entries with an index matrix."""
        return {"t": lambda: self.parts, "r": list}.get(self.kind, lambda: [self])()

    def kernel(self):
        """Return taps and width of an index matrix."""
        order = list(range(len(self.shape)))
        split, axes = self.layout or (self.shape, order)
        run = []
        for axis in range(len(split) - 1, 1, -1):
            if axes[axis] != axis:
                break
            run.append(split[axis])
        taps = math.prod(run)
        if taps <= 1 or self.matrix[1] % taps:
            return 1, 0
        return taps, run[0]
