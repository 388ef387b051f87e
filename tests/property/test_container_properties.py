"""Any contents come back exactly; any bytes are a file or a CorruptFileError."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fewbits.coded import (
    FLOAT_DTYPES,
    RAW_DTYPES,
    ActivationGrid,
    Codebook,
    CodebookTensor,
    Contents,
    GridTensor,
    Layout,
    RawTensor,
    TransformTensor,
)
from fewbits.coding import EFFORTS
from fewbits.container import decode, encode, measure, streams
from fewbits.container.frame import PREFIX
from fewbits.container.header import dump_json, pack_names, parse_json, unpack_names
from fewbits.errors import CorruptFileError
from forging import framed

FILE = encode(Contents({}))
BOUNDED = settings(derandomize=True, deadline=None, max_examples=120, database=None)
FEWER = settings(BOUNDED, max_examples=50)  # each takes a writer and a reader of whole files
FLOATS = st.floats(allow_nan=False, allow_infinity=False, width=32)
NAMES = st.text(st.sampled_from("ab.0é"), max_size=8)
LEAVES = (
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.text(max_size=5)
    | st.floats(allow_nan=False, allow_infinity=False)
)  # fmt: skip
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


def same(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if is_dataclass(a):
        pairs = [(getattr(a, item.name), getattr(b, item.name)) for item in fields(a)]
        return type(a) is type(b) and all(same(x, y) for x, y in pairs)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


@st.composite
def grids(draw, rows=None, columns=None):
    rows = draw(st.integers(0, 5)) if rows is None else rows
    columns = draw(st.integers(0, 5)) if columns is None else columns
    index = draw(npst.arrays(np.int32, (rows, columns)))
    step = draw(npst.arrays(np.float32, draw(st.sampled_from([1, rows])), elements=FLOATS))
    halves = st.integers(-9, 9).map(lambda value: value / 2)
    offset = draw(npst.arrays(np.float32, draw(st.sampled_from([1, rows])), elements=halves))
    dtype = draw(st.sampled_from(list(FLOAT_DTYPES)))
    shapes = [((rows, columns), None), ((rows * columns,), None)]
    shapes.append(((columns, rows), Layout((rows, columns), (1, 0))))
    shape, layout = draw(st.sampled_from(shapes))
    return GridTensor(shape, dtype, index, step, offset, layout)


@st.composite
def codebook_tensors(draw, books):
    book = draw(st.sampled_from(books))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    index = draw(npst.arrays(np.int32, shape, elements=st.integers(0, book.values.size - 1)))
    scale = draw(npst.arrays(np.float32, draw(st.sampled_from([1, shape[0]])), elements=FLOATS))
    return CodebookTensor(shape, "float32", index, book, scale)


@st.composite
def transforms(draw):
    outer, inner, last = (draw(st.integers(1, 3)) for _ in range(3))
    left, right = draw(grids(outer, inner)), draw(grids(inner, last))
    left = GridTensor((outer, inner), "float32", left.index, left.step)
    right = GridTensor((inner, last), "float32", right.index, right.step)
    side = draw(st.sampled_from(["left", "right"]))
    basis, coefficients = (left, right) if side == "left" else (right, left)
    return TransformTensor((outer, last), "float16", coefficients, basis, side)


@st.composite
def raws(draw):
    dtype = draw(st.sampled_from(list(RAW_DTYPES)))
    shape = draw(st.lists(st.integers(0, 3), max_size=3).map(tuple))
    top = 1 if dtype == "bool" else 255
    size = int(np.prod(shape)) * RAW_DTYPES[dtype]
    return RawTensor(shape, dtype, draw(npst.arrays(np.uint8, size, elements=st.integers(0, top))))


@st.composite
def all_contents(draw):
    books = [Codebook(np.array(v, np.float32)) for v in ([-1.0, 0.0, 1.0], [5.0])]
    tensor = grids() | codebook_tensors(books) | transforms() | raws()
    tensors = draw(st.dictionaries(NAMES, tensor, max_size=5))
    aliases = {}
    if tensors:
        other = NAMES.filter(lambda name: name not in tensors)
        aliases = draw(st.dictionaries(other, st.sampled_from(list(tensors)), max_size=2))
    clip = st.floats(1e-30, 1e30) | st.floats(2**-20, 2**20, width=32)
    grid = st.builds(ActivationGrid, st.integers(1, 16), clip, st.booleans())
    activations = draw(st.dictionaries(NAMES, grid, max_size=3))
    return Contents(tensors, aliases, activations, draw(st.dictionaries(NAMES, JSON, max_size=3)))


def comes_back(contents, effort):
    data = encode(contents, effort, threads=1)
    got = decode(data, threads=1)
    assert same(got, contents)
    assert encode(got, effort, threads=1) == data
    assert measure(data).file_bytes == len(data)


@FEWER
@given(all_contents(), st.sampled_from(list(EFFORTS)))
def test_any_contents_come_back(contents, effort):
    comes_back(contents, effort)


@pytest.mark.slow
@settings(BOUNDED, max_examples=400)
@given(all_contents(), st.sampled_from(list(EFFORTS)))
def test_many_more_contents_come_back(contents, effort):
    comes_back(contents, effort)


def comes_back_in_chunks(contents, size, threads):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK", size)
        data = encode(contents, "fast", threads)
        assert same(decode(data, threads=threads), contents)
        assert measure(data).file_bytes == len(data)


@FEWER
@given(all_contents(), st.integers(1, 12), st.sampled_from([1, 2]))
def test_any_contents_come_back_in_chunks_of_any_size(contents, size, threads):
    comes_back_in_chunks(contents, size, threads)


@pytest.mark.slow
@settings(BOUNDED, max_examples=400)
@given(all_contents(), st.integers(1, 12), st.sampled_from([1, 2]))
def test_many_more_contents_come_back_in_chunks(contents, size, threads):
    comes_back_in_chunks(contents, size, threads)


@BOUNDED
@given(st.lists(NAMES, unique=True, max_size=20))
def test_any_names_come_back(names):
    assert list(unpack_names(pack_names(names), "x", 10**6)) == names


@BOUNDED
@given(JSON)
def test_any_json_comes_back(value):
    text = dump_json(value)
    assert dump_json(parse_json(text)) == text


@BOUNDED
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data):
    for attempt in (data, PREFIX + data, PREFIX + data + FILE[-22:], FILE[:-22] + data):
        try:
            decode(attempt)
        except CorruptFileError:
            continue
        raise AssertionError("random bytes were decoded")


@BOUNDED
@given(
    st.dictionaries(st.sampled_from(list("ntbaqgvmcl")), JSON, max_size=5), st.binary(max_size=40)
)
def test_any_header_is_refused_or_decoded(header, payload):
    data = framed(dump_json(header), payload)
    try:
        decode(data, max_decoded_bytes=2**20)
    except CorruptFileError:
        return
    assert not header.get("t")
