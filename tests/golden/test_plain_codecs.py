"""The codecs against the plain reader, which was written from SPEC.md alone: every matrix, every
setting that the format allows, and the same refusals of damaged bytes.
"""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

import plain_reader
from examples import path
from fewbits.coding import CODECS, Layout, decode_run, decode_symbols
from fewbits.coding.mix import mix, settings, trellis
from fewbits.coding.rans import floats, rans
from fewbits.coding.rans.classes import Classes
from fewbits.errors import CorruptFileError
from plain_reader import bits, flags, functions

NUMBERS = {"constant": 0, "raw": 1, "rans": 2, "mix": 3, "planes": 4, "floats": 5}
NUMBERS |= {"trellis": 6, "rans_trellis": 7}
KERNELS = [(9, 3), (25, 5), (6, 2), (5, 5), (4, 1), (49, 7), (50, 5), (12, 5), (81, 9)]


def seeds(few, many):
    """Return a few seeds, and those of slow tests."""
    return [*range(few), *(pytest.param(s, marks=pytest.mark.slow) for s in range(few, many))]


def drawn(rng, columns=None, size=300):
    """Draw a matrix: of any width, with dead rows and columns, with extremes, or nearly empty."""
    columns = columns or int(rng.choice([1, 2, 3, 8, 30, 100]))
    rows = int(rng.choice([1, 2, max(1, size // columns)]))
    found = rng.laplace(
        0, 2.0 ** rng.integers(-3, 12 if rng.random() < 0.8 else 27), (rows, columns)
    )
    choice = int(rng.integers(6))
    if choice == 0:
        found = np.cumsum(found, axis=int(rng.integers(2))) / 2
    elif choice == 1:
        found *= rng.integers(0, 3, (rows, 1)) * np.exp(rng.normal(0, 1, columns))
    elif choice == 2:
        found[rng.random(found.shape) < 0.01] *= 1000
    elif choice == 3:
        found = abs(found) * rng.choice([-1, 1])
    symbols = np.rint(found).clip(-(2**31), 2**31 - 1).astype(np.int64)
    symbols += int(rng.choice([0, 0, -1000, 2**31 - 1 - symbols.max(), -(2**31) - symbols.min()]))
    return symbols.clip(-(2**31), 2**31 - 1).astype(np.int32)


def kernels(rng):
    taps, width = KERNELS[rng.integers(len(KERNELS))]
    symbols = drawn(rng, taps * int(rng.integers(1, 4)))
    return symbols, Layout(*symbols.shape, taps, width)


def pictures(rng):
    side = int(rng.integers(8, 12))
    strokes = np.cumsum(rng.normal(0, 1, (4, side, side)), axis=1) * rng.integers(
        0, 2, (side, side)
    )
    symbols = np.rint(strokes).astype(np.int32).reshape(4, -1)
    return symbols, Layout(*symbols.shape)


def tuples(rng):
    period = int(rng.integers(2, 4))
    words = rng.integers(-1, 2, (4, period)).astype(np.int32)
    symbols = words[rng.integers(0, 4, 200)].reshape(1, -1)
    return symbols, Layout(*symbols.shape)


def any_matrix(rng):
    kind = rng.integers(6)
    if kind < 3:
        symbols = drawn(rng)
        return symbols, Layout(*symbols.shape)
    return (kernels, pictures, tuples)[kind - 3](rng)


def plain(layout):
    return plain_reader.Layout(layout.rows, layout.columns, layout.taps, layout.width)


def agree(number, data, *pairs):
    """Both readers give the matrices of ``pairs`` (symbols, layout)."""
    layouts = [layout for _, layout in pairs]
    found = plain_reader.matrices(number, data, [plain(layout) for layout in layouts])
    assert found == [symbols.reshape(-1).tolist() for symbols, _ in pairs]
    if len(pairs) > 1:
        ours = decode_run(number, data, layouts)
    else:
        ours = [decode_symbols(number, data, layouts[0])]
    for matrix, (symbols, _) in zip(ours, pairs, strict=True):
        np.testing.assert_array_equal(matrix, symbols)


@pytest.mark.parametrize("seed", seeds(4, 30))
@pytest.mark.parametrize("codec", ["constant", "raw", "rans", "mix", "trellis", "rans_trellis"])
def test_every_matrix(codec, seed):
    symbols, layout = any_matrix(np.random.default_rng(seed))
    symbols = path(symbols // 4) if "trellis" in codec else symbols
    if codec == "constant":
        symbols = np.full_like(symbols, symbols[0, 0])
    data = CODECS[codec].encode(symbols, layout)
    if data is not None:
        agree(NUMBERS[codec], data, (symbols, layout))


@pytest.mark.parametrize("seed", seeds(6, 30))
def test_planes(seed):
    rng = np.random.default_rng(seed)
    rows, columns = int(rng.integers(1, 300)), int(rng.integers(2, 9))
    most = rng.choice([1, 2, 9, 200, 256], columns)
    symbols = (rng.integers(0, 256, (rows, columns)) * rng.random((rows, 1)) % most).astype(
        np.uint8
    )
    data = CODECS["planes"].encode(symbols, Layout(rows, columns))
    agree(4, data, (symbols, Layout(rows, columns)))


@pytest.mark.parametrize("seed", seeds(6, 30))
def test_floats(seed, monkeypatch):
    """With classes in most planes, where tables are thought to be cheap."""
    monkeypatch.setattr(floats, "LEAST", 0)
    monkeypatch.setattr(floats, "CLASS_BITS", 20.0)
    rng = np.random.default_rng(seed)
    rows, columns = int(rng.integers(1, 400)), int(rng.choice([2, 4, 8]))
    values = np.rint(rng.laplace(0, 9, (rows, 1))) * (rng.random((rows, 1)) < 0.7)
    symbols = values.astype(f"<f{columns}").view(np.uint8)
    symbols[:, 0] |= rng.integers(0, 9, rows).astype(np.uint8) * (values[:, 0] != 0)
    data = CODECS["floats"].encode(symbols, Layout(rows, columns))
    agree(5, data, (symbols, Layout(rows, columns)))


@pytest.mark.parametrize("seed", seeds(2, 30))
def test_matrices_that_share_a_body(seed):
    rng = np.random.default_rng(seed)
    pairs = [any_matrix(rng) for _ in range(int(rng.integers(2, 6)))]
    pairs += [(pairs[0][0].copy(), pairs[0][1])]
    pairs += [(np.full((2, 3), 5, np.int32), Layout(2, 3))]
    data = CODECS["mix"].encode_group(*zip(*pairs, strict=True))
    if data is not None:
        agree(3, data, *pairs)


@pytest.mark.parametrize("seed", [1, *seeds(0, 30)[:1], *seeds(0, 30)[2:]])  # 0 takes seconds
def test_paths_that_share_a_body(seed, monkeypatch):
    """With settings that a writer would not choose, too."""
    rng = np.random.default_rng(seed)
    pairs = [any_matrix(rng) for _ in range(3)]
    pairs = [(path(symbols[:9] // 4), replace(x, rows=len(symbols[:9]))) for symbols, x in pairs]
    data = CODECS["trellis"].encode_group(*zip(*pairs, strict=True))
    if data is not None:
        agree(6, data, *pairs)
    plain_settings = trellis.Trellis.settings_of

    def settings_of(self, values, layout):
        found = plain_settings(self, values, layout)
        spare = int(rng.integers(2**20))
        lowest, highest = max(found.lowest - spare, -(2**31)), min(found.highest + 9, 2**31 - 1)
        usual, shift = int(rng.choice(settings.USUAL)), int(rng.choice([0, 1, 3, 9, 27]))
        return replace(found, lowest=lowest, highest=highest, usual=usual, shift=shift)

    monkeypatch.setattr(trellis.Trellis, "settings_of", settings_of)
    data = CODECS["trellis"].encode_group(*zip(*pairs, strict=True))
    if data is not None:
        agree(6, data, *pairs)


def any_settings(rng, symbols):
    """Draw settings that a writer would not choose, but that can code ``symbols``."""
    spare = 2 ** int(rng.integers(0, 31))
    lowest = max(int(symbols.min()) - int(rng.integers(spare)), -(2**31))
    highest = min(int(symbols.max()) + int(rng.integers(spare)), 2**31 - 1)
    return settings.Settings(
        lowest=lowest,
        highest=highest,
        centre=int(rng.integers(lowest, highest + 1)),
        usual=int(rng.choice(settings.USUAL)),
        period=int(rng.integers(1, 4)),
        shift=int(rng.choice([0, 1, 3, 9, 27])),
        pictures=bool(rng.integers(2)),
    )


@pytest.mark.parametrize("seed", seeds(4, 60))
def test_mix_with_any_settings(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    pairs = [any_matrix(rng) for _ in range(2)]
    pairs = [(s[:6], replace(layout, rows=min(6, layout.rows))) for s, layout in pairs]
    monkeypatch.setattr(mix, "_settings", lambda symbols, _: any_settings(rng, symbols))
    data = CODECS["mix"].encode_group(*zip(*pairs, strict=True))
    if data is not None:
        agree(3, data, *pairs)


@pytest.mark.slow
def test_mix_where_statistics_are_halved():
    """Sums of regressions after 2**15 symbols, averages after 2**16."""
    symbols = np.random.default_rng(0).integers(0, 2, (66_000, 1)).astype(np.int32)
    data = CODECS["mix"].encode(symbols, Layout(66_000, 1))
    agree(3, data, (symbols, Layout(66_000, 1)))


def any_window(rng, symbols):
    """Draw a window with a bin for some of the symbols."""
    low = int(rng.choice([0, 0, 1, 7, 20]))
    high = symbols.astype(np.int64) >> low
    first, last = int(high.min()), int(high.max())
    if last - first < 250 and rng.random() < 0.5:
        first = max(first - 1, -(2**31 >> low))
        last = min(last + 1, (2**31 >> low) - 1)
        return rans.Window(first, max(2, last - first + 1), low)
    first = int(rng.choice(high.reshape(-1)))
    alphabet = int(rng.integers(2, 257))
    room = (2**31 >> low) - first  # bins that stand for symbols
    lowest = int(symbols.min())
    width = (int(symbols.max()) - lowest).bit_length()
    return rans.Window(first, min(alphabet, room + 1), low, max(1, width), lowest)


def any_classes(rng, bins, layout, alphabet):
    """Draw levels and tables, with roots for the bins that each table has, and for others."""
    sizes = (layout.rows, layout.columns // layout.taps, layout.taps)
    rows, inputs, taps = (
        rng.integers(0, int(rng.choice([1, 2, 16])), size).astype(np.uint8) for size in sizes
    )
    most = sum(int(levels.max()) for levels in (rows, inputs, taps))
    tables = np.cumsum([0, *rng.integers(0, 2, most) * rng.integers(1, 3, most)])
    classes = Classes(rows, inputs, taps, tables.clip(0, 15), np.zeros((1, 2), np.int64))
    roots = rng.integers(0, 256, (int(classes.tables[-1]) + 1, alphabet))
    roots *= rng.random(roots.shape) < rng.choice([0, 0.3, 1])
    cells, places = classes.cells()
    cells = cells[places]
    for table, row in enumerate(roots):
        present = np.unique(bins[cells == table]).astype(int)
        row[present] = np.maximum(row[present], 1)
        row[0] = max(row[0], not row.any())
    return replace(classes, roots=roots.astype(np.int64))


@pytest.mark.parametrize("seed", seeds(30, 200))
def test_rans_with_any_classes(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    symbols, layout = any_matrix(rng)
    if symbols.min() == symbols.max():
        return
    window = any_window(rng, symbols)
    classes = any_classes(rng, rans._bins(symbols, window), layout, window.alphabet)
    monkeypatch.setattr(rans, "_window", lambda *_: window)
    monkeypatch.setattr(rans, "fit", lambda *_: (classes, 0.0))
    data = CODECS["rans"].encode(symbols, layout)
    assert data is not None
    agree(2, data, (symbols, layout))


def outcome(decode):
    """Return the symbols, or that it was refused; nothing else may happen."""
    try:
        return decode()
    except (plain_reader.Refused, CorruptFileError):
        return "refused"


def changed(rng, data):
    """Draw damage: a byte set, a bit flipped, bytes cut off or added; mostly near the begin."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 3))):
        place = int(len(out) * rng.random() ** 4)
        choice = int(rng.integers(6))
        if choice == 0:
            del out[-int(rng.integers(1, 4)) :]
        elif choice == 1:
            out += bytes(rng.integers(0, 256, int(rng.integers(1, 6))).tolist())
        elif choice == 2:
            out[place : place + 1] = rng.integers(0, 256, 2).tolist()
        elif out:
            place = min(place, len(out) - 1)
            out[place] = int(rng.integers(256)) if choice < 5 else out[place] ^ 1
    return bytes(out)


@pytest.mark.parametrize("seed", seeds(4, 40))
@pytest.mark.parametrize("codec", NUMBERS)
def test_both_refuse_the_same_damage(codec, seed, monkeypatch):
    monkeypatch.setattr(floats, "LEAST", 0)
    monkeypatch.setattr(floats, "CLASS_BITS", 20.0)
    rng = np.random.default_rng(seed)
    if codec in ("planes", "floats"):
        symbols = rng.integers(0, 9, (30, 4)).astype(np.uint8)
    else:
        symbols = np.rint(rng.laplace(0, 3 + 9 * seed, (6, 18))).astype(np.int32)
    if codec == "constant":
        symbols[:] = seed
    if "trellis" in codec:
        symbols = path(symbols // (1 + 3 * seed))
    kernel = codec in ("mix", "rans", "trellis", "rans_trellis")
    layout = Layout(*symbols.shape, *((9, 3) if kernel else (1, 0)))
    data, number = CODECS[codec].encode(symbols, layout), NUMBERS[codec]
    for _ in range(6 if codec in ("mix", "trellis") else 30):
        wrong = changed(rng, data)
        ours = outcome(lambda: decode_symbols(number, wrong, layout).reshape(-1).tolist())  # noqa: B023
        assert outcome(lambda: plain_reader.symbols(number, wrong, plain(layout))) == ours  # noqa: B023


def examples(what):
    """Return the groups of each line of section 6 of the specification that looks like this."""
    text = plain_reader.SPEC.read_text(encoding="utf-8").partition("## 6. Examples")[2]
    found = re.findall(what, text.partition("## 7.")[0], re.MULTILINE)
    assert found
    return found


def layouts_of(text):
    """Return the layouts of a line such as ``1x5 + 2x9 (9, 3)``."""
    parts = re.findall(r"(\d+)x(\d+)(?: \((\d+), (\d+)\))?", text)
    return [
        Layout(int(r), int(c), *((int(taps), int(width)) if taps else ()))
        for r, c, taps, width in parts
    ]


def test_the_examples_of_the_specification():
    rows = examples(r"^\| `(\w+)` \| (.*) \| `([0-9a-f]+)` \| ([-\d ]+) \|$")
    assert {codec for codec, *_ in rows} == set(NUMBERS)
    for codec, told, body, symbols in rows:
        pairs, numbers = [], np.array(symbols.split(), np.int64).astype(np.int32)
        for layout in layouts_of(told):
            taken, numbers = numbers[: layout.size], numbers[layout.size :]
            pairs.append((taken.reshape(layout.rows, layout.columns), layout))
        assert numbers.size == 0
        agree(NUMBERS[codec], bytes.fromhex(body), *pairs)


def test_the_flags_that_the_specification_tells(monkeypatch):
    """Every node, side, chance and flag of its first stream of flags."""
    ask, bit, coded, told = flags.Model.ask, bits.Bits.bit, [], []

    def bit_told(self, chance):
        coded.append((chance, bit(self, chance)))
        return coded[-1][1]

    def ask_told(self, frame, node, side, *chance):
        found = ask(self, frame, node, side, *chance)
        told.append((node, side, *coded[-1]))
        return found

    monkeypatch.setattr(bits.Bits, "bit", bit_told)
    monkeypatch.setattr(flags.Model, "ask", ask_told)
    rows = examples(r"^\| `mix` \| (.*) \| `([0-9a-f]+)`")
    plain_reader.symbols(3, bytes.fromhex(rows[0][1]), plain(layouts_of(rows[0][0])[0]))
    lines = " ".join(examples(r"^    (\d.*)$"))
    numbers = [int(number) for number in re.findall(r"\d+", lines)]
    assert numbers == [number for flag in told for number in flag]


@pytest.mark.parametrize("name", ["squash", "stretch", "oct"])
def test_the_functions_that_the_specification_tells(name):
    ((places, values),) = examples(rf"^\| x \| (.*) \|\n.*\n\| {name}\(x\) \| (.*) \|$")
    function = functions.octaves if name == "oct" else getattr(functions, name)
    found = [function(int(x)) for x in places.split(" | ")]
    assert found == [int(value) for value in values.split(" | ")]


def test_the_sizes_that_marks_stand_for():
    (line,) = examples(r"^U\[0\.\.\.52\]: (.*)\.$")
    assert [int(size) for size in line.split()] == functions.USUAL


def test_functions_are_what_they_are_called():
    """Tables from integers stand for functions of reals."""
    for odds in range(-3071, 3072):
        assert abs(functions.squash(odds) - 65536 / (1 + math.exp(-odds / 256))) <= 1
    for chance in range(16, 65520, 16):
        real = 256 * math.log((chance + 8) / (65528 - chance))
        assert abs(functions.stretch(chance) - min(max(real, -2047), 2047)) <= 10
    for size in range(8192):
        assert abs(functions.octaves(size) - 4 * math.log2(size + 1)) <= 0.5
