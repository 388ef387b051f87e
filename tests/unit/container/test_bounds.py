"""Time and memory are bounded by the file's length and the caller's limit, whatever it says."""

import json
import time
import tracemalloc
import zlib

import numpy as np
import pytest

from fewbits import inspect, load, load_tensor
from fewbits.coded import Contents, RawTensor
from fewbits.coding import CODECS
from fewbits.coding.adaptive import dump_settings
from fewbits.coding.filters import Settings
from fewbits.coding.flags import Shape
from fewbits.coding.flags import walk as walk_flags
from fewbits.coding.queue import FlagEncoder
from fewbits.coding.varint import signed_varint, varint
from fewbits.container import encode
from fewbits.container.json_text import parse_json
from fewbits.container.prefix import join_prefix
from fewbits.errors import ConfigError, CorruptFileError

SECONDS = 2.0
BYTES = 200_000_000


def forged(header, bodies=(), minor=3):
    """Return a file whose checksums and lengths are right, whatever else it says."""
    header = {"c": [], "l": [len(body) for body in bodies], **header}
    payload = b"".join(body + zlib.crc32(body).to_bytes(4, "little") for body in bodies)
    return join_prefix(json.dumps(header).encode(), len(payload), minor) + payload


def grids(shape, codec, body, count=1, **options):
    """Return a file of ``count`` grids whose indices are all ``body``."""
    names = [f"0{place:x}" for place in range(count)]
    entry = ["g", list(shape), options] if options else ["g", list(shape)]
    side = CODECS["raw"].encode(np.array([[0, 0, 128, 63]] * count, np.uint8))
    codecs = [CODECS[codec].number] * count + [CODECS["raw"].number]
    return forged({"n": names, "t": [entry] * count, "c": codecs}, [body] * count + [side])


def spent(use, *args):
    """Return what ``use`` raised, and its CPU seconds."""
    begin = time.process_time()
    raised = refusal(use, *args)
    return raised, time.process_time() - begin


def held(use, *args):
    """Return the bytes that ``use`` held at most; counting them takes several times as long."""
    tracemalloc.start()
    refusal(use, *args)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def refusal(use, *args):
    try:
        use(*args)
    except CorruptFileError as error:
        return error
    return None


def one(path):
    return load_tensor(path, "0")


def read_within(path, data):
    """Read ``data`` in every way, within the bounds of a short file; return what loading raised."""
    assert len(data) <= 10_000
    path.write_bytes(data)
    found = {}
    for use in (inspect, one, load):
        found[use], seconds = spent(use, path)
        assert seconds < SECONDS, (use, seconds)
    return found[load]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.fewbits"


@pytest.mark.parametrize(
    "text",
    [
        b'"' + b'\\"' * 300_000,
        b'{"m":"' + b'\\"' * 300_000,
        b'"' * 600_000,
        b'{"m":{"' + b"\\" * 600_001,
        b'["' + b'\\\\"",' * 100_000,
        b"[" + b'"]",' * 200_000,
    ],
    ids=["a string without end", "in an object", "quotes", "backslashes", "pairs", "brackets"],
)
def test_strings_are_scanned_once(text):
    raised, seconds = spent(parse_json, text)
    assert raised is not None
    assert seconds < 1
    assert held(parse_json, text) < 100 * len(text)


@pytest.mark.parametrize("text", [b'["]]]]","[[[[", "\\"[[", "\\\\"]', b'{"a\\"[":[[{"b":[]}]]}'])
def test_brackets_in_strings_do_not_nest(text):
    assert parse_json(text) == json.loads(text)
    deep = b"[" * 32 + text + b"]" * 32
    with pytest.raises(CorruptFileError, match="nested deeper"):
        parse_json(deep)


@pytest.mark.parametrize("rank", [2**40, 2**48])
def test_the_rank_of_a_product_without_values_costs_nothing(path, rank):
    for shape, tall, wide in (([0], [0, rank], [rank, 0]), ([0, 7], [0, rank], [rank, 0])):
        parts = {"b": ["g", tall], "c": ["g", wide]}
        data = forged({"n": ["00"], "t": [["t", shape, parts]], "c": [1]}, [b"\0\0"])
        assert read_within(path, data) is None
        assert list(load(path)["0"].shape) == shape


@pytest.mark.parametrize(
    ("kind", "shape", "options"),
    [
        ("r", [0, 2**48, 2**48], {}),
        ("r", [2**47, 0, 4], {"d": "bool"}),
        ("g", [0, 2**30, 2**30], {}),
        ("g", [2**33, 2**33, 0], {"d": "float64"}),
        ("g", [0], {"m": [0, 2**48], "l": [[0, 2**40, 2**40], [2, 1, 0]]}),
        ("t", [0, 2**25, 2**25], {"b": ["g", [0, 1]], "c": ["g", [1, 0]]}),
    ],
)
def test_sizes_that_no_library_takes_are_refused_without_values_too(path, kind, shape, options):
    path.write_bytes(forged({"n": ["00"], "t": [[kind, shape, options]]}))
    for use in (inspect, load, one):
        with pytest.raises(CorruptFileError, match="product is beyond"):
            use(path)


def test_such_sizes_are_not_written():
    tensor = RawTensor((0, 2**40, 2**9), "float32", np.zeros(0, np.uint8))
    with pytest.raises(ConfigError, match=r"'w' has the shape.*at most 281474976710656"):
        encode(Contents({"w": tensor}))


@pytest.mark.parametrize("shape", [[0, 2**48], [2**48, 0], [2**24, 0, 2**24], [0, 2**20, 2**20, 4]])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_large_sizes_without_values_are_read(path, shape, dtype):
    for kind, count in (("g", 1), ("r", 0)):  # a grid has a step
        header = {"n": ["00"], "t": [[kind, shape, {"d": dtype}]], "c": [1] * count}
        data = forged(header, [b"\0\0"] * count)
        path.write_bytes(data)
        assert list(load(path)["0"].shape) == shape
        assert inspect(path).report.file_bytes == len(data)


def walk(size, taps, order, height):
    settings = Settings(taps, order, 8 * bool(order), 1, height, 0, 1)
    return signed_varint(0) + dump_settings(settings, size)


def framed(codec, body):
    return varint(16 * len(body) + CODECS[codec].number) + body


def flags():
    """Return a stream of `binary` whose symbols have 63 flags each, and take next to no bytes."""
    symbols = np.full((1 << 8, 1 << 6), 63, np.int32)
    symbols[0, 0] = 0
    coder = FlagEncoder()
    walk_flags(symbols.reshape(-1).tolist(), Shape(*symbols.shape, 64, 0, 0, 3), coder.take_flag)
    return signed_varint(0) + bytes([62, 0]) + varint(3) + coder.to_bytes()


HEAVY = {
    "blocks of one row": ("adaptive", (64, 64), walk(64, 64, 15, 1), 200),
    "large blocks": ("adaptive", (4096, 1024), walk(64, 1, 0, 64), 4),
    "many outputs": ("adaptive", (1 << 20, 16), walk(2, 4, 3, 1 << 14), 1),
    "counts of all triples": ("context", (1, 4096), signed_varint(0) + b"\x1e\2\1", 200),
    "one lane": ("context", (1 << 12, 1), signed_varint(0) + b"\6\1\1", 300),
    "matrices of a group": ("joined", (64, 64), walk(64, 64, 15, 1), 100),
    "a bound of a group": ("joined", (1 << 10, 64), walk(2, 64, 15, 1 << 4), 20),
    "parts of a split": (
        "split",
        (1 << 12, 1 << 12),
        signed_varint(0) + b"\x18" + framed("constant", b"") * 3,
        1,
    ),
    "wide tables": (
        "static",
        (1, 100),
        CODECS["static"].encode(np.array([[0] * 99 + [65535]], np.int32)),
        300,
    ),
    "nested": (
        "blocks",
        (2 << 10, 1 << 10),
        varint(1 << 10) + 2 * (varint(4) + varint(len(walk(64, 1, 0, 16))) + walk(64, 1, 0, 16)),
        4,
    ),
}

LARGE = ("large blocks", "many outputs", "parts of a split")


@pytest.mark.parametrize("name", HEAVY)
def test_work_is_counted_before_anything_is_decoded(path, name):
    codec, shape, body, count = HEAVY[name]
    data = grids(shape, codec, body, count)
    raised = read_within(path, data)
    if name in LARGE:
        assert held(load, path) < BYTES
    assert raised is None or "limit" in str(raised) or "damaged" in str(raised)


def test_flags_that_no_size_tells_of_are_counted_as_they_come(path):
    data = grids((1 << 8, 1 << 6), "binary", flags(), 8)
    raised = read_within(path, data)
    assert "more flags than the limit allows" in str(raised)
    assert load_tensor(path, "0", max_decoded_bytes=1 << 30).max() == 63


def test_a_limit_that_is_raised_reads_more_and_the_message_says_how(path):
    body = signed_varint(0) + b"\x1e\2\1"
    path.write_bytes(grids((1, 4096), "context", body, 200))
    with pytest.raises(CorruptFileError, match=r"units of work.*max_decoded_bytes=\d+") as caught:
        load(path)
    wanted = int(str(caught.value).split("max_decoded_bytes=")[1].split()[0])
    with pytest.raises(CorruptFileError, match="units of work"):
        load(path, max_decoded_bytes=wanted - 1)
    assert inspect(path).report.file_bytes == path.stat().st_size


def header_of(kind):
    count = 1 << 15
    names = [f"0{place:x}" for place in range(count)]
    return {
        "tensors": {"n": names, "t": [["g", [0]]] * count},
        "transforms": {
            "n": names[: 1 << 13],
            "t": [["t", [0], {"b": ["g", [0, 0]], "c": ["g", [0, 0]]}]] * (1 << 13),
        },
        "codebooks": {"b": [1] * (1 << 19)},
        "aliases": {"n": ["0_"], "t": [["r", [0]]], "a": dict.fromkeys(names, 0)},
        "names": {
            "n": ["0" + ".".join(["x" * 28] * 34) + ".y", *(f"y{k:x}" for k in range(1 << 15))],
            "t": [["r", [0]]] * ((1 << 15) + 1),
        },
    }[kind]


@pytest.mark.parametrize("kind", ["tensors", "transforms", "codebooks", "aliases", "names"])
def test_long_headers_are_bounded_by_what_they_list(path, kind):
    data = forged(header_of(kind))
    path.write_bytes(data)
    for use in (inspect, load):
        assert spent(use, path)[1] < SECONDS + 58 * len(data) / 1e6
    assert held(load, path) < BYTES + 8e8 * len(data) / 1e6
