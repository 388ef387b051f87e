"""What every registered codec must do, whatever it is; and one more, as someone else would add it.

Files, chooser, reader and size report are told nothing about the new one but what it declares.
"""

import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpu_time import within
from fewbits.coded import Contents, GridTensor, RawTensor
from fewbits.coding import CODECS, Bound, Layout, codec_of, decode_symbols, encode_symbols, kernels
from fewbits.container import decode, encode, inspect, measure
from fewbits.container.frame import FIELDS, FOOTER
from fewbits.errors import ConfigError, CorruptFileError
from packages import install, installed_in
from paths import path

RNG = np.random.default_rng(3)


class Runs:
    """Run lengths: each symbol once, and how often it comes."""

    name, number, since, tier = "runs", 99, (2, 1), 0
    summary = "long runs of one symbol"
    bound = Bound(1 << 14, units_per_symbol=1, fixed_units=1 << 12, bytes_per_symbol=16)

    def encode(self, symbols, layout, *, limit=1 << 62):
        flat = symbols.reshape(-1).astype("<i4")
        ends = np.append(np.flatnonzero(np.diff(flat)), flat.size - 1)
        lengths = np.diff(ends, prepend=-1)
        if lengths.max() >= 1 << 16 or 6 * ends.size > limit:
            return None
        return flat[ends].tobytes() + lengths.astype("<u2").tobytes()

    def decode(self, data, layout):
        count, rest = divmod(len(data), 6)
        lengths = np.frombuffer(data, "<u2", -1, 4 * count) if not rest else np.zeros(0, int)
        if int(lengths.sum(dtype=np.int64)) != layout.size:
            raise CorruptFileError(f"runs of {lengths.sum()} symbols, not {layout.size}")
        found = np.repeat(np.frombuffer(data, "<i4", count), lengths)
        return found.reshape(layout.rows, layout.columns)

    def measure(self, symbols, layout):
        data = self.encode(symbols, layout)
        return None if data is None else 8.0 * len(data)


NAMES = [*CODECS, "runs"]


@pytest.fixture
def runs():
    """The new codec, registered while a test runs."""
    yield CODECS.register("runs")(Runs())
    CODECS.unregister("runs")


@pytest.fixture(params=NAMES)
def codec(request):
    if request.param == "runs":
        request.getfixturevalue("runs")
    return CODECS[request.param]


def _whole(values):
    return np.rint(values).clip(-(2**31), 2**31 - 1).astype(np.int64).astype(np.int32)


def _floats(count):
    return RNG.normal(size=(count, 1)).astype("<f4").view(np.uint8)


SMOOTH = np.cumsum(RNG.normal(size=(20, 90)), axis=1)
BELL = _whole(RNG.normal(0, 3, (24, 40)))
MATRICES = {
    "bell": (BELL, Layout(24, 40)),
    "kernels": (_whole(SMOOTH), Layout(20, 90, 9, 3)),
    "kernels of 49": (_whole(RNG.laplace(0, 1, (8, 98))), Layout(8, 98, 49, 7)),
    "taps without width": (_whole(RNG.laplace(0, 1, (8, 98))), Layout(8, 98, 7)),
    "pictures": (_whole(SMOOTH[:, :64]), Layout(20, 64, 1, 8)),
    "one": (np.array([[-7]], np.int32), Layout(1, 1)),
    "one row": (_whole(RNG.laplace(0, 2, (1, 700))), Layout(1, 700)),
    "one column": (_whole(RNG.laplace(0, 2, (700, 1))), Layout(700, 1)),
    "constant": (np.full((9, 11), 5, np.int32), Layout(9, 11)),
    "extremes": (np.array([[-(2**31), 2**31 - 1, 0]], np.int32), Layout(1, 3)),
    "at the end": (2**31 - 1 - abs(BELL), Layout(24, 40)),
    "sparse": ((RNG.random((60, 60)) < 0.02).astype(np.int32), Layout(60, 60)),
    "rows of unlike size": (BELL << np.arange(24, dtype=np.int32)[:, None], Layout(24, 40)),
    "heavy tails": (_whole(RNG.standard_t(1, (40, 30)) * 900), Layout(40, 30)),
    "uniform": (RNG.integers(-(2**31), 2**31, (30, 30)).astype(np.int32), Layout(30, 30)),
    "signs": (RNG.integers(0, 2, (64, 64)).astype(np.int8) * 2 - 1, Layout(64, 64)),
    "int8": (BELL.astype(np.int8), Layout(24, 40)),
    "all of int8": (RNG.integers(-128, 128, (30, 31)).astype(np.int8), Layout(30, 31)),
    "int16": (BELL.astype(np.int16) * 900, Layout(24, 40)),
    "uint8": (RNG.integers(100, 140, (300, 1)).astype(np.uint8), Layout(300, 1)),
    "bytes of floats": (_floats(200), Layout(200, 4)),
    "bytes of halves": (_floats(200)[:, 2:].copy(), Layout(200, 2)),
    "bytes of counts": (np.arange(90)[:, None].astype("<i8").view(np.uint8), Layout(90, 8)),
    "transposed": (BELL.T, Layout(40, 24)),
    "every other": (BELL[::2, ::3], Layout(12, 14)),
    "backwards": (BELL[::-1, ::-1], Layout(24, 40)),
    "a column of bytes": (_floats(100)[:, 3:], Layout(100, 1)),
    "bytes of many halves": (_floats(900)[:, 2:].copy(), Layout(900, 2)),
    "paths": (path(BELL), Layout(24, 40)),
    "paths of kernels": (path(_whole(SMOOTH)), Layout(20, 90, 9, 3)),
    "paths of int8": (path(BELL).astype(np.int8), Layout(24, 40)),
    "wide paths": (path(BELL * 1_000_000), Layout(24, 40)),
    "long paths": (path(_whole(RNG.laplace(0, 2, (700, 1)))), Layout(700, 1)),
    "repeated": (np.broadcast_to(BELL[:1], (12, 40)), Layout(12, 40)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_what_is_coded_comes_back(codec, name):
    values, layout = MATRICES[name]
    before = values.copy()
    _check(codec, values, layout)
    assert np.array_equal(values, before)


def _check(codec, values, layout):
    data = codec.encode(values, layout)
    if data is None:
        return
    back = codec.decode(data, layout)
    assert back.shape == values.shape
    assert back.dtype in (np.int8, np.uint8, np.int32)
    assert np.array_equal(back, values)
    assert layout.size <= codec.bound.symbols_per_byte * len(data)
    assert codec.encode(values, layout, limit=len(data)) == data
    assert codec.encode(values, layout, limit=len(data) - 1) is None
    assert codec.encode(np.ascontiguousarray(values), layout) == data
    bits = codec.measure(values, layout)
    if bits is not None:
        assert abs(bits / 8 - len(data)) <= 0.05 * len(data) + 32


@st.composite
def matrices(draw):
    taps, width = draw(st.sampled_from([(1, 0), (1, 3), (4, 2), (9, 3), (5, 0), (6, 3)]))
    rows, inputs = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    columns = inputs * taps if taps > 1 else max(inputs, width)
    bound = draw(st.sampled_from([1, 2, 7, 127, 40_000, 2**31 - 1]))
    lowest = draw(st.sampled_from([0, -1, -bound, -(2**31) if bound > 2**30 else 5]))
    seed = draw(st.integers(0, 2**32 - 1))
    spread = draw(st.floats(0.01, 3))
    values = np.random.default_rng(seed).normal(0, spread * bound / 4, (rows, columns))
    values = np.clip(np.rint(values), lowest, min(lowest + bound, 2**31 - 1))
    return values.astype(np.int32), Layout(rows, columns, taps, width)


@pytest.mark.parametrize("name", CODECS)
@given(case=matrices())
@settings(max_examples=25, deadline=None)
def test_small_matrices_come_back(name, case):
    _check(CODECS[name], *case)


def test_every_codec_takes_something_and_tells_what_it_takes(codec):
    taken = [name for name, case in MATRICES.items() if codec.encode(*case) is not None]
    told = [name for name in taken if codec.measure(*MATRICES[name]) is not None]
    assert taken
    assert len(told) >= 0.8 * len(taken)


def test_codecs_declare_themselves(codec):
    assert CODECS[codec.name] is codec
    assert codec_of(codec.number) is codec
    assert codec.since >= (2, 0)
    assert codec.tier in (0, 1)
    assert codec.summary
    assert codec.bound.memory(Layout(10, 10)) >= 400
    assert codec.bound.work(2) > codec.bound.work(1) > 0
    with pytest.raises(ConfigError, match="registered twice"):
        CODECS.register(codec.name)(codec)
    with pytest.raises(ConfigError, match=f"is that of '{codec.name}'|must be an integer in"):
        CODECS.register("another")(type("Another", (Runs,), {"number": codec.number})())


def _sample(codec, shape=(300, 400)):
    """Return a large matrix that suits a codec, and its bytes."""
    values = RNG.laplace(0, 3, shape).round().clip(-9, 9).astype(np.int32)
    for suited in (
        values,
        RNG.integers(0, 40, shape).astype(np.uint8),
        np.repeat(values[:, :1], shape[1], axis=1),
        np.full(shape, 7, np.int32),
        path(values // 4),
    ):
        data = codec.encode(suited, Layout(*shape))
        if data is not None:
            return data
    return None


@pytest.mark.parametrize(
    "shape",
    [
        *((300, 400), (1, 60_000), (60_000, 1)),
        *(pytest.param(s, marks=pytest.mark.slow) for s in [(2, 50_000), (20_000, 4), (30_000, 2)]),
    ],
)
def test_decoding_stays_within_the_memory_declared(codec, shape):
    layout, data = Layout(*shape), _sample(codec, shape)
    if data is None:
        return
    codec.decode(data, layout)  # whatever is loaded once is loaded now
    assert _peak(codec, data, layout) <= codec.bound.memory(layout) + 3 * len(data) + 100_000


def _peak(codec, data, layout):
    tracemalloc.start()
    try:
        codec.decode(data, layout)
    except CorruptFileError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def _broken(data, rng):
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(min(len(out), int(rng.choice([4, 30, len(data)])))))
        kind = int(rng.integers(4))
        if kind == 0:
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            out[at] = int(rng.choice([0, 1, 127, 128, 255]))
        elif kind == 2:
            out[at:at] = rng.bytes(int(rng.integers(1, 5)))
        elif len(out) > 1:
            del out[at : at + int(rng.integers(1, 5))]
        if not out:
            return b"\0"
    return bytes(out)


@pytest.mark.parametrize("shape", [(30, 40), (1, 1200), (1200, 1), (300, 4)])
def test_whatever_is_decoded_costs_no_more_than_declared(codec, shape):
    """Broken bytes give a matrix or a CorruptFileError, within time and memory."""
    kernels.compiled()
    layout, data = Layout(*shape), _sample(codec, shape)
    if data is None:
        return
    rng, units = np.random.default_rng(5), codec.bound.work(layout.size)
    for _ in range(60):
        broken = _broken(data, rng)
        with within(1e-7 * units + 0.05):
            try:
                found = decode_symbols(codec.number, broken, layout)
            except CorruptFileError:
                pass
            else:
                assert found.shape == shape
        assert _peak(codec, broken, layout) <= codec.bound.memory(layout) + 200_000


def test_more_symbols_than_the_bytes_can_hold_are_refused_before_any_work(codec):
    data = _sample(codec, (300, 4))
    rows = codec.bound.symbols_per_byte * len(data) // 4 + 1
    with pytest.raises(CorruptFileError, match="hold at most"):
        decode_symbols(codec.number, data, Layout(rows, 4))


def test_truncated_bytes_are_refused(codec):
    name = next(name for name, case in MATRICES.items() if codec.encode(*case) is not None)
    values, layout = MATRICES[name]
    data = codec.encode(values, layout)
    for length in range(len(data)):
        try:
            found = decode_symbols(codec.number, data[:length], layout)
        except CorruptFileError:
            continue
        assert not np.array_equal(found, values)
    with pytest.raises(CorruptFileError):
        decode_symbols(codec.number, data + b"\1\2\3\4\5\6\7\1\1", layout)


BLOCKS = np.repeat([5, -70_000, 9], [30_000, 20_000, 10_000]).reshape(100, 600).astype(np.int32)


def test_a_new_codec_is_chosen_where_it_wins(runs):
    assert encode_symbols(BLOCKS, Layout(100, 600), "smallest")[0] == "runs"
    assert encode_symbols(BELL, Layout(24, 40), "smallest")[0] != "runs"


def _contents():
    one = np.ones(1, np.float32)
    return Contents(
        {
            "blocks.w": GridTensor((100, 600), "float32", BLOCKS, one),
            "bell.w": GridTensor((24, 40), "float32", BELL, one),
            "bias": RawTensor((9,), "float32", np.arange(36, dtype=np.uint8)),
        }
    )


@pytest.mark.parametrize("effort", ["fast", "balanced", "smallest"])
def test_a_file_with_a_new_codec(runs, effort, tmp_path):
    data = encode(_contents(), effort)
    assert FIELDS.unpack_from(data, len(data) - FOOTER)[0] == 1  # its minor version
    found = decode(data).tensors
    np.testing.assert_array_equal(found["blocks.w"].index, BLOCKS)
    np.testing.assert_array_equal(found["bell.w"].index, BELL)
    rows = {row.name: row for row in measure(data).rows}
    assert rows["blocks.w"].codecs == "runs"
    assert rows["blocks.w"].payload == 18 + 4
    (tmp_path / "net").write_bytes(data)
    assert inspect(tmp_path / "net").version == (2, 1)


def test_a_file_without_it_stays_as_old_as_it_was(runs):
    contents = _contents()
    data = encode(Contents({"bell.w": contents.tensors["bell.w"]}))
    assert FIELDS.unpack_from(data, len(data) - FOOTER)[0] == 0


def test_a_reader_without_the_codec_asks_for_its_package():
    CODECS.register("runs")(Runs())
    data = encode(_contents(), "smallest")
    CODECS.unregister("runs")
    for use in (decode, measure):
        message = r"'blocks\.w'.*codec number 99, unknown.*Install the package that provides"
        with pytest.raises(CorruptFileError, match=message):
            use(data)


def test_planes_are_coded_by_the_codecs_that_version_2_0_has(runs):
    values = np.repeat(np.array([[7, 1], [1, 9], [3, 3]], np.uint8), 9_000, axis=0)
    layout = Layout(27_000, 2)
    data = CODECS["planes"].encode(values, layout)
    assert np.array_equal(CODECS["planes"].decode(data, layout), values)
    assert len(data) > 2 * 18


@pytest.mark.parametrize("inside", ["mix", "planes"])
def test_planes_hold_nothing_slow(inside):
    column = (RNG.random((300, 1)) < 0.1).astype(np.uint8)
    coded = CODECS["mix"].encode(column.T, Layout(1, 300))
    body = bytes([8 * len(coded) % 128 + CODECS[inside].number | 128, 8 * len(coded) >> 7]) + coded
    with pytest.raises(CorruptFileError, match="planes cannot use"):
        CODECS["planes"].decode(body + body, Layout(300, 2))


def test_files_in_our_codecs_import_no_package(tmp_path):
    """One that is installed is imported for a number that is none of ours; files name none."""
    spy = (
        "from fewbits.coding import CODECS\nspy = type('Spy', (), {'name': 'spy', 'number': 98})()"
    )
    install(tmp_path, "spy", {"spy.py": spy}, {"fewbits.codecs": {"spy": "spy:spy"}})
    ours = encode(_contents())
    CODECS.register("runs")(Runs())
    theirs = encode(_contents(), "smallest")
    CODECS.unregister("runs")
    with installed_in(tmp_path, CODECS):
        decode(ours)
        assert "spy" not in sys.modules
        with pytest.raises(CorruptFileError, match="codec number 99"):
            decode(theirs)
        assert "spy" in sys.modules
