"""Files of every format version, kept for ever: still read, still written, still what SPEC.md says.

``v1.0/*.fewbits`` were written once by format 1.0, and so on; they are never written again. A
change that needs them changed is a new major version.
"""

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from fewbits.coding import CODECS, EFFORTS, cut, decode_group
from fewbits.coding.joined import Group
from fewbits.container import decode, encode, inspect, measure
from fewbits.container.dictionary import DICTIONARY
from fewbits.container.prefix import split_prefix

HERE = Path(__file__).parent
SHA256 = {
    "v1.0/network": "2201852ae6e1c7df47066ca4ad8f1200839063242cb37326d150b8d4c10e88f6",
    "v1.0/kinds": "04f03b5733551f1520901548bbb94be0563acef0f477c293d110a44297ce8642",
    "v1.0/chunks": "5ee8faf4a6795713946275c5853ece8778a4061fc85670654cd8418e0d20d152",
    "v1.0/empty": "f88a071b4fe61fd32d82cc2c57727292100c3dcbe49f3745d032c65978719ee4",
    "v1.1/filters": "0b7cc6102239a30581b63e1a6dec5fb8f39c9866244df6ef32f32a4e102911cb",
    "v1.1/tuples": "39fb0b811e22072bdee9d5eed62dcf5237b0967e92269a94ece794d7ed89603c",
    "v1.1/sequences": "5e9712636d4348ad86f007073d8ed722740775cc2a8aed2a075c399698594c16",
    "v1.2/blocks": "3d4d012f4966d13bc30768ca5dfa5721bce1353ca73be1e4580559b82fcceb0d",
    "v1.2/wide": "0727f17202ea5398845d9ea5bc2b7e20c6031384bf5587b5783a6ca82251a4bf",
    "v1.2/joined": "4efcd1ca8dc27d023e55fa0034b32203297db85e0f578e97f352f98f654adf25",
    "v1.2/pictures": "cff32c6df1601f627486e0590a417600274c27d3535313882ba1773ae6e81010",
    "v1.3/zeros": "879ce46ff0f33605f986daa07a80ef323d5693858033b56efa33f69b511a2b0c",
    "v1.4/dtypes": "527a282af24528a75a2a1f429372918bae37cf60017360f822d3f670463cf661",
}


def load(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EFFORT = {"v1.0": "fast"} | dict.fromkeys(["v1.1", "v1.2", "v1.3"], "smallest") | {"v1.4": "fast"}
# Codecs that came later, or that would take a file from the codec that it is for.
WITHOUT = {
    "v1.1/filters": ("binary", "split"),
    "v1.1/tuples": ("binary", "split"),
    "v1.1/sequences": ("binary", "split"),
    "v1.2/blocks": ("binary",),
    "v1.2/wide": ("binary",),
    "v1.2/joined": ("binary",),
}
reference, EXAMPLES = load("reference_reader"), load("examples").EXAMPLES


@pytest.fixture
def small_blocks(monkeypatch):
    """Cut matrices into blocks far smaller than a writer would."""
    monkeypatch.setattr(cut, "SYMBOLS", 1000)
    monkeypatch.setattr(cut, "ROWS", 8)


def golden(name):
    return (HERE / f"{name}.fewbits").read_bytes()


def same(a, b):
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if is_dataclass(a):
        pairs = [(getattr(a, item.name), getattr(b, item.name)) for item in fields(a)]
        return type(a) is type(b) and all(same(x, y) for x, y in pairs)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_golden_file_is_the_one_that_was_written(name):
    assert hashlib.sha256(golden(name)).hexdigest() == SHA256[name]


def test_golden_files_stay_small():
    files = {f"{path.parent.name}/{path.stem}" for path in HERE.glob("v*/*.fewbits")}
    assert files == set(EXAMPLES) == set(SHA256)
    assert sum(len(golden(name)) for name in EXAMPLES) < 20_000


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_golden_file_decodes_to_what_was_put_in(name):
    assert same(decode(golden(name)), EXAMPLES[name]())
    assert list(decode(golden(name)).tensors) == list(EXAMPLES[name]().tensors)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_writer_still_writes_the_same(name, request, monkeypatch):
    """With the codecs of that file, and all but what depends on the machine's zlib."""
    if name == "v1.2/blocks":
        request.getfixturevalue("small_blocks")
    effort = EFFORTS[EFFORT[name[:4]]]
    known = tuple(codec for codec in effort.codecs if codec not in WITHOUT.get(name, ()))
    monkeypatch.setitem(EFFORTS._entries, EFFORT[name[:4]], replace(effort, codecs=known))
    was, now = golden(name), encode(EXAMPLES[name](), EFFORT[name[:4]])
    before, after = split_prefix(was, 2**30), split_prefix(now, 2**30)
    assert after.header == before.header
    assert now[after.payload_start :] == was[before.payload_start :]


@pytest.mark.parametrize("name", EXAMPLES)
def test_inspect_and_measure_agree_and_sum_to_the_file(name):
    info = inspect(HERE / f"{name}.fewbits")
    assert f"v{info.version[0]}.{info.version[1]}" == name[:4]
    assert info.report == measure(golden(name))
    assert info.report.file_bytes == len(golden(name))
    assert same(info.activations, EXAMPLES[name]().activations)


def leaf_is(leaf, tensor):
    assert leaf.dtype == tensor.dtype
    assert tuple(leaf.shape) == tensor.shape
    assert tuple(leaf.matrix) == tensor.index.shape
    assert leaf.index == tensor.index.reshape(-1).tolist()
    if leaf.kind == "g":
        assert leaf.factor_bytes == tensor.step.astype("<f4").tobytes()
        if isinstance(leaf.offset, int):
            assert [leaf.offset / 2] == tensor.offset.tolist()
        else:
            assert leaf.offset_bytes == tensor.offset.astype("<f4").tobytes()
    elif leaf.factors:
        assert leaf.factor_bytes == tensor.scale.astype("<f4").tobytes()
    else:
        assert tensor.scale.tolist() == [1.0]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_plain_reader_reads_the_same_from_the_specification_alone(name):
    want = EXAMPLES[name]()
    header, entries, levels, clips = reference.read(golden(name), DICTIONARY)
    assert list(entries) == list(want.tensors)
    assert header.get("m", {}) == want.metadata
    names = list(entries)
    assert {key: names[at] for key, at in header.get("a", {}).items()} == want.aliases
    grids = zip(header.get("g", []), clips, strict=True)
    found = [(code % 64 // 2, clip, bool(code % 2), code // 64) for code, clip in grids]
    assert found == [
        (grid.bits, grid.clip, grid.signed, grid.zero) for grid in want.activations.values()
    ]
    for key, entry in entries.items():
        tensor = want.tensors[key]
        if entry.kind == "r":
            assert (entry.dtype, entry.stored) == (tensor.dtype, tensor.stored)
            assert entry.data == tensor.data.tobytes()
            continue
        layout = tensor.layout and [list(tensor.layout.split), list(tensor.layout.axes)]
        assert entry.layout == layout
        if entry.kind == "t":
            assert entry.side == (tensor.side == "right")
            leaf_is(entry.parts[0], tensor.coefficients)
            leaf_is(entry.parts[1], tensor.basis)
        else:
            leaf_is(entry, tensor)
            if entry.kind == "c":
                assert levels[entry.book] == tensor.codebook.values.tobytes()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("codec", ["static", "raw", "tuple"])
def test_the_plain_decoder_and_the_library_agree_on_random_streams(codec, seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(2, 3000))
    spread = 2.0 ** rng.integers(-2, 8 if codec != "tuple" else 4)
    symbols = np.rint(rng.laplace(3, spread, (size, 1))).astype(np.int32)
    symbols = symbols.clip(-99, 99) if codec == "tuple" else symbols
    symbols[0], symbols[1] = 5, 6
    data = CODECS[codec].encode(symbols)
    number = CODECS[codec].number
    assert reference.symbols(number, data, size, 1) == symbols.reshape(-1).tolist()


def random_filters(rng):
    """A matrix of some kind that ``adaptive`` codes: (outputs, inputs * taps)."""
    taps = int(rng.choice([1, 9, 25]))
    inputs = int(rng.integers(1, 6)) if taps > 1 else int(rng.integers(10, 80))
    shape = (int(rng.integers(8, 40)), inputs, taps)
    values = rng.laplace(0, 2.0 ** rng.integers(-2, 3), shape) * np.exp(
        rng.normal(size=(inputs, 1))
    )
    values[..., 1:] += 0.6 * values[..., :-1]
    index = np.rint(values).clip(-20, 20).astype(np.int32).reshape(shape[0], -1)
    return index + int(rng.integers(-100, 100))


@pytest.mark.parametrize("seed", range(8))
def test_the_plain_decoder_and_the_library_agree_on_filters(seed):
    symbols = random_filters(np.random.default_rng(seed))
    data = CODECS["adaptive"].encode(symbols)
    assert reference.symbols(4, data, *symbols.shape) == symbols.reshape(-1).tolist()


@pytest.mark.parametrize("seed", range(6))
def test_the_plain_decoder_and_the_library_agree_on_joined_matrices(seed):
    """Of unlike sizes, so that blocks are cut to the rows; of unlike strengths."""
    rng = np.random.default_rng(seed)
    taps = int(rng.choice([1, 9, 25]))
    shapes = [(int(rng.integers(1, 30)), taps * int(rng.integers(1, 5))) for _ in range(4)]
    matrices = [
        np.rint(rng.laplace(0, 2, shape)).clip(-9, 9).astype(np.int32) - 50 for shape in shapes
    ]
    matrices[0][0, 0] = -41
    group = Group(matrices, taps)
    height = int(rng.integers(1, 9))
    group.settings = replace(group.settings, height=height)
    data = group.encode(seed % 4)
    found = reference.adaptive.matrices(reference.Bytes(data), shapes, joined=True)
    assert found == [matrix.reshape(-1).tolist() for matrix in matrices]
    for matrix, got in zip(matrices, decode_group(data, shapes), strict=True):
        np.testing.assert_array_equal(got, matrix)


@pytest.mark.parametrize("order", [1, 2])
def test_the_plain_decoder_and_the_library_agree_on_sequences(order):
    rng = np.random.default_rng(order)
    flat = [0, 0]
    for _ in range(1999):
        flat.append(int(flat[-order] + rng.integers(0, 5) // 4 + 1) % (2 + order))
    symbols = np.array(flat, np.int32).reshape(3, -1) - 9
    data = CODECS["context"].encode(symbols)
    assert data[2] == order
    assert reference.symbols(6, data, *symbols.shape) == symbols.reshape(-1).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_the_plain_decoder_and_the_library_agree_on_blocks(seed, small_blocks):
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=(1, int(rng.integers(30, 45)))))
    values = rng.laplace(0, 2, (70, 1)) * scale * rng.integers(0, 2, (70, 1))
    symbols = np.rint(values).clip(-30, 30).astype(np.int32)
    data = CODECS["blocks"].encode(symbols)
    assert reference.symbols(9, data, *symbols.shape) == symbols.reshape(-1).tolist()


@pytest.mark.parametrize("seed", range(12))
def test_the_plain_decoder_and_the_library_agree_on_flags(seed):
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 40)), int(rng.choice([1, 9, 25, 36, 49])))
    symbols = np.rint(rng.laplace(0, 2.0 ** rng.integers(-3, 3), shape)).astype(np.int32)
    symbols = (symbols * (rng.random(shape[1]) < 0.7)).clip(*((-30, 30), (0, 9), (-9, 0))[seed % 3])
    symbols[0, 0] = 1 if seed % 3 < 2 else -1
    symbols = symbols.T if seed % 2 else symbols
    data = CODECS["binary"].encode(symbols)
    if data is not None:
        assert reference.symbols(7, data, *symbols.shape) == symbols.reshape(-1).tolist()


def test_the_specification_prints_the_dictionary_and_the_mantissas():
    text = (HERE.parents[1] / "src/fewbits/container/SPEC.md").read_text(encoding="utf-8")
    block = text.partition("## 7. Preset dictionary")[2].split("```")[1]
    assert "".join(block.split("\n")).encode() == DICTIONARY
    assert " ".join(map(str, reference.MANTISSAS)) in text
