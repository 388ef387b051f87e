"""Time and memory are bounded by the file's length and the caller's limit, whatever it says."""

import bisect
import json
import string
import tracemalloc

import numpy as np
import pytest

from cpu_time import within
from fewbits import inspect, load, load_tensor
from fewbits.coded import Contents, RawTensor
from fewbits.coding import CODECS, Layout, kernels
from fewbits.coding.codec import varint
from fewbits.coding.mix import mix
from fewbits.coding.mix.settings import Settings
from fewbits.coding.numbers import Numbers
from fewbits.coding.rans import classes, rans
from fewbits.container import encode
from fewbits.container.header import parse_json
from fewbits.container.limits import body_work
from fewbits.errors import ConfigError, CorruptFileError
from forging import forge

SECONDS = 5.0  # of CPU time; without bounds it would be minutes
BYTES = 200_000_000


def padded(header, bodies):
    """Return a file of almost 10 kB: what it may take grows with its length."""
    rng = np.random.default_rng(0)
    text = "".join(rng.choice(list(string.ascii_letters + string.digits), 13_000))

    def with_letters(count):
        return forge({**header, "m": {"x": text[:count]}} if count else header, bodies)

    steps = range(0, len(text), 60)
    fitting = bisect.bisect_right(steps, 10_000, key=lambda count: len(with_letters(count)))
    return with_letters(steps[max(fitting - 1, 0)])


def tensors(kind, shape, codec, body, *, count=1, chunks=1, shared=False):
    """Return a file of ``count`` tensors, all chunks of which are ``body``."""
    names = [f"0{place:x}" for place in range(count)]
    options = [{"d": "uint8"}] if kind == "r" else []
    number, total = CODECS[codec].number, count * chunks
    bodies = [body, *[None if shared else body] * (total - 1)]
    codecs = [number] * total
    if kind == "g":
        codecs, bodies = [*codecs, CODECS["constant"].number], [*bodies, b"\0"]  # their steps
    return padded({"n": names, "t": [[kind, shape, *options]] * count, "c": codecs}, bodies)


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
        with within(SECONDS):
            found[use] = refusal(use, path)
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
    with within(1):
        raised = refusal(parse_json, text)
    assert raised is not None
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
        data = forge({"n": ["00"], "t": [["t", shape, parts]], "c": [0]}, [b"\0"])
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
    path.write_bytes(forge({"n": ["00"], "t": [[kind, shape, options]]}))
    for use in (inspect, load, one):
        with pytest.raises(CorruptFileError, match="product exceeds"):
            use(path)


def test_such_sizes_are_not_written():
    tensor = RawTensor((0, 2**40, 2**9), "float32", np.zeros(0, np.uint8))
    with pytest.raises(ConfigError, match=r"'w' has shape.*at most 281474976710656"):
        encode(Contents({"w": tensor}))


@pytest.mark.parametrize("shape", [[0, 2**48], [2**48, 0], [2**24, 0, 2**24], [0, 2**20, 2**20, 4]])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_large_sizes_without_values_are_read(path, shape, dtype):
    for kind, count in (("g", 1), ("r", 0)):  # a grid has a step
        header = {"n": ["00"], "t": [[kind, shape, {"d": dtype}]], "c": [0] * count}
        data = forge(header, [b"\0"] * count)
        path.write_bytes(data)
        assert list(load(path)["0"].shape) == shape
        assert inspect(path).report.file_bytes == len(data)


def walked(values, layout, settings):
    """Return a stream of `mix` whatever its settings, noise at its begin: bytes pay for symbols."""
    values = np.full((layout.rows, layout.columns), values, np.int32)
    noise = np.random.default_rng(0).integers(settings.lowest, 4, 2400, np.int32)
    values.reshape(-1)[: noise.size] = noise[: values.size]
    stream = mix._Stream(mix.ENCODE, layout.size, room=4 * layout.size)
    stream.walk(values, layout, settings)
    return settings.to_bytes(None) + mix.coded_bytes(stream.state, stream.buffer)


def classed(layout, rows, inputs, alphabet=256, escape=0):
    """Return a stream of `rans` with levels and tables as asked for, and symbols that are 0."""
    roots = np.zeros((classes.MOST_TABLES, alphabet), np.int64)
    roots[:, 0], roots[:, 1] = 255, 1
    top = int(rows.max()) + int(inputs.max())
    tables = np.minimum(np.arange(top + 1), len(roots) - 1)
    known = classes.Classes(rows, inputs, np.zeros(1, np.uint8), tables, roots[: tables.max() + 1])
    side = Numbers.writer(1 << 20)
    classes.code_classes(side, known, alphabet)
    side = side.to_bytes()
    bins, window = np.zeros((layout.rows, layout.columns), np.uint8), rans.Window(0, alphabet)
    if escape:
        window = rans.Window(0, alphabet, 0, escape, 0)
    lanes = rans._push(bins, bins, window, known)
    return window.to_bytes() + varint(len(side)) + side + lanes


def levels(count, last=0):
    found = np.zeros(count, np.uint8)
    found[-1] = last
    return found


CHUNK = 1 << 21
SURE = Settings(-1, 3, 0, 0, 1, 0)  # a 3 has four flags, or three
HUGE = Settings(-1, 2**31 - 2, -1, 0, 1, 0)


def small_tables():
    return classed(Layout(1, 1), levels(1, 15), levels(1))


HEAVY = {
    "flags": lambda: tensors("g", [1_300_000], "mix", walked(3, Layout(1_300_000, 1), SURE)),
    "flags of kernels": lambda: tensors(
        "g", [27_000, 1, 7, 7], "mix", walked(3, Layout(27_000, 49, 49, 7), SURE)
    ),
    "flags of pairs": lambda: tensors(
        "g", [600_000, 1, 1, 2], "mix", walked(3, Layout(600_000, 2, 2, 2), SURE)
    ),
    "flags of large symbols": lambda: tensors(
        "g", [60_000], "mix", walked(2**31 - 2, Layout(60_000, 1), HUGE)
    ),
    "a row of flags": lambda: tensors(
        "g", [1, 1_300_000], "mix", walked(3, Layout(1, 1_300_000), SURE)
    ),
    "many in a body": lambda: tensors(
        "g",
        [1, 1, 7, 7],
        "mix",
        CODECS["mix"].encode_group(
            [np.full((1, 49), k == 0, np.int32) for k in range(1200)],
            [Layout(1, 49, 49, 7)] * 1200,
        ),
        count=1200,
        shared=True,
    ),
    "levels of rows": lambda: tensors(
        "g", [CHUNK], "rans", classed(Layout(CHUNK, 1), levels(CHUNK, 15), levels(1)), count=7
    ),
    "levels of inputs": lambda: tensors(
        "g",
        [1, CHUNK],
        "rans",
        classed(Layout(1, CHUNK), levels(1, 15), levels(CHUNK, 15)),
        count=7,
    ),
    "bytes": lambda: tensors(
        "r",
        [24 * CHUNK],
        "rans",
        classed(Layout(CHUNK, 1), levels(CHUNK), levels(1)),
        chunks=24,
    ),
    "escapes": lambda: tensors(
        "g", [CHUNK], "rans", classed(Layout(CHUNK, 1), levels(CHUNK), levels(1), 256, 8), count=7
    ),
    "tables": lambda: tensors("g", [1, 1], "rans", small_tables(), count=190),
    "constants": lambda: tensors("g", [8 * CHUNK], "constant", b"\0", chunks=8),
    "constant bytes": lambda: tensors("r", [25 * CHUNK], "constant", b"\0", chunks=25),
}


# Others of their kind that differ little: the same flags, in other shapes.
ALIKE = ("flags", "flags of pairs", "a row of flags")
CASES = [pytest.param(n, marks=pytest.mark.slow) if n in ALIKE else n for n in HEAVY]


@pytest.mark.parametrize("name", CASES)
def test_work_is_bounded_whatever_is_decoded(path, name):
    kernels.compiled()
    raised = read_within(path, HEAVY[name]())
    assert raised is None or "limit" in str(raised) or "flags" in str(raised)


@pytest.mark.parametrize("name", ["levels of inputs", "escapes", "bytes", "constants"])
def test_memory_is_bounded_whatever_is_decoded(path, name):
    path.write_bytes(HEAVY[name]())
    assert held(load, path) < BYTES


def test_a_limit_that_is_raised_reads_more_and_the_message_says_how(path):
    body = classed(Layout(CHUNK, 1), levels(CHUNK), levels(1))
    path.write_bytes(tensors("r", [30 * CHUNK], "rans", body, chunks=30))
    with pytest.raises(CorruptFileError, match=r"units of work.*max_decoded_bytes=\d+") as caught:
        load(path)
    wanted = int(str(caught.value).split("max_decoded_bytes=")[1].split()[0])
    with pytest.raises(CorruptFileError, match="units of work"):
        load(path, max_decoded_bytes=wanted - 1)
    assert inspect(path).report.file_bytes == path.stat().st_size
    assert load(path, max_decoded_bytes=wanted)["0"].numel() == 30 * CHUNK


def test_every_chunk_of_a_body_counts():
    alone = body_work(CODECS["mix"], [100])
    assert body_work(CODECS["mix"], [100] * 50) == alone + 49 * (4096 + 70 * 100)


def header_of(kind, count):
    names = [f"0{place:x}" for place in range(count)]
    return {
        "tensors": {"n": names, "t": [["g", [0]]] * count},
        "transforms": {
            "n": names[: count // 4],
            "t": [["t", [0], {"b": ["g", [0, 0]], "c": ["g", [0, 0]]}]] * (count // 4),
        },
        "codebooks": {"b": [1] * (16 * count)},
        "aliases": {"n": ["0_"], "t": [["r", [0]]], "a": dict.fromkeys(names, 0)},
        "names": {
            "n": ["0" + ".".join(["x" * 28] * 34) + ".y", *(f"y{k:x}" for k in range(count))],
            "t": [["r", [0]]] * (count + 1),
        },
    }[kind]


@pytest.mark.parametrize("count", [1 << 14, pytest.param(1 << 15, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["tensors", "transforms", "codebooks", "aliases", "names"])
def test_long_headers_are_bounded_by_what_they_list(path, kind, count):
    data = forge(header_of(kind, count))
    path.write_bytes(data)
    for use in (inspect, load):
        with within(SECONDS + 58 * len(data) / 1e6):
            refusal(use, path)
    assert held(load, path) < BYTES + 8e8 * len(data) / 1e6
