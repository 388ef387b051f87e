"""decode(encode(x)) is x to the last bit, for everything that contents can be."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass

import numpy as np
import pytest

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
from fewbits.container import decode, encode
from fewbits.errors import ConfigError, CorruptFileError

RNG = np.random.default_rng(0)


def same(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if is_dataclass(a):
        pairs = [(getattr(a, item.name), getattr(b, item.name)) for item in fields(a)]
        return type(a) is type(b) and all(same(x, y) for x, y in pairs)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def f32(*values):
    return np.array(values, np.float32)


def grid(rows=4, columns=6, shape=None, **more):
    index = RNG.integers(-7, 8, (rows, columns), np.int32)
    settings = {"shape": shape or (rows, columns), "dtype": "float32", "step": f32(0.1)}
    return GridTensor(index=index, **(settings | more))


def floats(*values, dtype="<f4"):
    return np.array(values, dtype).view(np.uint8)


BOOK = Codebook(f32(-1.5, 0, 0.1, 3))
CASES = {
    "nothing": {},
    "float16": {"w": grid(dtype="float16")},
    "per row": {"w": grid(step=f32(1, 2, 3, 4))},
    "per row of one": {"w": grid(rows=1, step=f32(3))},
    "negative step": {"w": grid(step=f32(-0.0))},
    "half offset": {"w": grid(offset=f32(-7.5))},
    "offsets per row": {"w": grid(offset=f32(0, 0.5, -0.0, 99))},
    "offset of minus zero": {"w": grid(offset=f32(-0.0))},
    "offset beyond integers": {"w": grid(offset=f32(3e38))},
    "offset at the bound": {"w": grid(offset=f32(2**32))},
    "five dimensions": {"w": grid(shape=(2, 2, 3, 1, 2))},
    "layout": {"w": grid(shape=(3, 8), layout=Layout((4, 2, 3), (2, 0, 1)))},
    "scalar": {"w": GridTensor((), "float32", np.array([[5]], np.int32), f32(2))},
    "no rows": {"w": GridTensor((0, 3), "float32", np.zeros((0, 3), np.int32), f32(2))},
    "no rows, no steps": {"w": GridTensor((0, 3), "float32", np.zeros((0, 3), np.int32), f32())},
    "no columns": {"w": GridTensor((3, 0), "float32", np.zeros((3, 0), np.int32), f32(1, 2, 3))},
    "other matrix": {"w": grid(shape=(24,))},
    "extremes": {
        "w": GridTensor((2,), "float32", np.array([[-(2**31), 2**31 - 1]], np.int32), f32(1))
    },
    "codebook": {
        "w": CodebookTensor((2, 3), "float32", np.array([[0, 1, 2], [3, 2, 1]], np.int32), BOOK)
    },
    "scales": {
        "w": CodebookTensor((2, 2), "bfloat16", np.zeros((2, 2), np.int32), BOOK, f32(0.5, 1)),
        "v": CodebookTensor((2, 2), "float32", np.zeros((2, 2), np.int32), BOOK, f32(2)),
    },
    "transform": {
        "w": TransformTensor((4, 5), "float32", grid(3, 5), grid(4, 3)),
        "v": TransformTensor((20,), "float32", grid(4, 3), grid(3, 5, step=f32(1, 2, 3)), "right"),
        "u": TransformTensor(
            (5, 4), "float32", grid(3, 5), grid(4, 3), "left", Layout((4, 5), (1, 0))
        ),
    },
    "transform of a codebook": {
        "w": TransformTensor(
            (4, 2),
            "float32",
            CodebookTensor((3, 2), "float32", np.full((3, 2), 2, np.int32), BOOK),
            grid(4, 3),
        )
    },
    "raw special values": {
        "w": RawTensor((5,), "float32", floats(-0.0, np.nan, np.inf, -np.inf, 1e-45)),
        "payload": RawTensor(
            (2,), "float32", np.array([0x7FC12345, 0xFF800001], "<u4").view(np.uint8)
        ),
    },
    "raw scalar and empty": {
        "counter": RawTensor((), "int64", np.array([-5], "<i8").view(np.uint8)),
        "flag": RawTensor((3,), "bool", np.array([0, 1, 1], np.uint8)),
        "none": RawTensor((0, 4), "float64", np.zeros(0, np.uint8)),
    },
    "raw in other dtypes": {
        f"{dtype}.{stored}": RawTensor(
            (2,), dtype, np.arange(2 * width, dtype=np.uint8) % 2, stored
        )
        for dtype in ("float32", "int8")
        for stored, width in RAW_DTYPES.items()
        if stored == dtype or {stored, dtype} <= FLOAT_DTYPES.keys()
    },
    "raw at the bound of groups": {
        "a": RawTensor((16384,), "float32", np.arange(65536).astype(np.uint8)),
        "b": RawTensor((16385,), "float32", np.arange(65540).astype(np.uint8)),
    },
    "names": {
        name: grid(1, 1)
        for name in ["", ".", "a..b", "a", "a.b", "é.日本.🙂", "(header)", "0", '"\\\n']
    },
}


@pytest.mark.parametrize("case", CASES)
def test_exact(case):
    contents = Contents(CASES[case])
    data = encode(contents)
    got = decode(data)
    assert same(got, contents)
    assert list(got.tensors) == list(contents.tensors)
    assert encode(got) == data == encode(contents)


def test_values_are_those_of_the_tensors():
    for case, tensors in CASES.items():
        got = decode(encode(Contents(tensors))).tensors
        for name, tensor in tensors.items():
            if not isinstance(tensor, RawTensor):
                with np.errstate(over="ignore"):
                    want, values = tensor.dequantize(), got[name].dequantize()
                assert same(values, want), case
                assert values.shape == tensor.shape


def test_a_shared_codebook_is_stored_and_read_once():
    index = RNG.integers(0, 4, (8, 8), np.int32)
    shared = {n: CodebookTensor((8, 8), "float32", index, BOOK) for n in ("a", "b", "c")}
    copies, others = (
        {
            n: CodebookTensor((8, 8), "float32", index, Codebook(BOOK.values * np.float32(scale)))
            for n, scale in zip("abc", scales, strict=True)
        }
        for scales in ((1, 1, 1), (1, 2, 3))
    )
    got = decode(encode(Contents(shared))).tensors
    assert got["a"].codebook is got["b"].codebook is got["c"].codebook
    assert encode(Contents(shared)) == encode(Contents(copies))
    assert len(encode(Contents(shared))) < len(encode(Contents(others)))


def test_aliases_activations_and_metadata():
    metadata = {
        "é": [1, -0.0, 1e-300, None, True, "\x00\ud7ff", 10**40, {"deep": [[[]]]}],
        "recipe": {"bits": 4},
    }
    contents = Contents(
        {"a.w": grid(), "b.w": grid()},
        {"z": "a.w", "y": "b.w", "x": "a.w"},
        {"b": ActivationGrid(16, 0.25, signed=True), "a": ActivationGrid(1, 3.0, signed=False)},
        metadata,
    )
    got = decode(encode(contents))
    assert same(got, contents)
    assert str(got.metadata["é"][1]) == "-0.0"


def test_clips_that_are_no_float32_are_kept_exactly():
    grids = {"a": ActivationGrid(4, 0.1, signed=True), "b": ActivationGrid(4, 1e300, signed=True)}
    assert same(decode(encode(Contents({}, activations=grids))).activations, grids)


def test_the_order_of_aliases_and_metadata_does_not_change_the_bytes():
    tensors = {"w": grid()}
    one = Contents(tensors, {"a": "w", "b": "w"}, {}, {"x": 1, "y": {"p": 1, "q": 2}})
    two = Contents(tensors, {"b": "w", "a": "w"}, {}, {"y": {"q": 2, "p": 1}, "x": 1})
    assert encode(one) == encode(two)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"a": float("nan")}, r"metadata\['a'\] is nan"),
        ({"a": [1, {"b": (1, 2)}]}, r"metadata\['a'\]\[1\]\['b'\] is a tuple"),
        ({"a": np.float64(1)}, "is a float64"),
        ({1: 2}, "Keys must be strings"),
        ({"a": "\ud800"}, "UTF-8"),
        ({"\ud800": 1}, "UTF-8"),
        ({"a": 10**70}, "64 characters"),
    ],
)
def test_metadata_that_is_not_json_is_refused(metadata, message):
    with pytest.raises(ConfigError, match=message):
        encode(Contents({}, metadata=metadata))


def test_metadata_may_be_deep_but_not_without_end():
    deep = []
    for _ in range(26):
        deep = [deep]
    assert decode(encode(Contents({}, metadata={"a": deep}))).metadata == {"a": deep}
    for _ in range(5):
        deep = [deep]
    with pytest.raises(ConfigError, match="nested deeper"):
        encode(Contents({}, metadata={"a": deep}))


@pytest.mark.parametrize("name", ["x" * 1025, "\udc80"])
def test_names_that_cannot_be_stored_are_refused(name):
    with pytest.raises(ConfigError):
        encode(Contents({name: grid(1, 1)}))


def test_tensors_that_could_not_be_read_are_not_written():
    with pytest.raises(ConfigError, match="other than 0 and 1"):
        encode(Contents({"w": RawTensor((2,), "bool", np.array([1, 2], np.uint8))}))
    book = Codebook(np.arange(-(2**23), 2**23 + 1, dtype=np.float32))
    index = np.zeros((1, 1), np.int32)
    with pytest.raises(ConfigError, match="16777217 levels"):
        encode(Contents({"w": CodebookTensor((1,), "float32", index, book)}))


def test_too_many_dimensions_are_refused():
    assert decode(encode(Contents({"w": grid(1, 1, shape=(1,) * 16)})))
    with pytest.raises(ConfigError, match="at most 16"):
        encode(Contents({"w": grid(1, 1, shape=(1,) * 17)}))


def test_the_limit_of_decoded_bytes_is_enforced_before_decoding():
    size = 2**24 + 2**17
    zeros = np.zeros((size, 1), np.int32)
    data = encode(Contents({"w": GridTensor((size,), "float32", zeros, f32(1))}))
    assert len(data) < 150
    advice = r"max_decoded_bytes=676\d{5} to fewbits\.load, or --max-decoded-mib 65 "
    with pytest.raises(CorruptFileError, match=advice):
        decode(data)
    got = decode(data, max_decoded_bytes=2**27).tensors["w"].index
    assert got.shape == (size, 1)
    with pytest.raises(CorruptFileError):
        decode(encode(Contents({"w": grid()})), max_decoded_bytes=10)


def test_bytes_count_once_in_the_limit():
    raw = RawTensor((10, 2**20), "float32", np.zeros(40 * 2**20, np.uint8))
    data = encode(Contents({"buffer": raw}))
    assert len(data) < 200
    assert decode(data).tensors["buffer"].data.size == 40 * 2**20
    with pytest.raises(CorruptFileError, match="max-decoded-mib 41"):
        decode(data, max_decoded_bytes=40 * 2**20)


def test_only_floating_dtypes_are_converted():
    for dtype in FLOAT_DTYPES:
        for stored, width in FLOAT_DTYPES.items():
            raw = RawTensor((3,), dtype, np.zeros(3 * width, np.uint8), stored)
            assert decode(encode(Contents({"w": raw}))).tensors["w"].stored == stored
    for dtype, stored in (("int8", "float64"), ("float32", "int32"), ("bool", "uint8")):
        raw = RawTensor((3,), dtype, np.zeros(3 * RAW_DTYPES[stored], np.uint8), stored)
        with pytest.raises(ConfigError, match=f"'w'.*{dtype}.*{stored}"):
            encode(Contents({"w": raw}))
