"""Files of every format version, kept for ever: still read, still written, still what SPEC.md says.

A version that was released never has its files written again: a change that needs them changed is a
new version of the format. ``make.py`` writes those of a new one.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import plain_reader
from examples import EXAMPLES, LARGER
from fewbits.coded import RawTensor, TransformTensor
from fewbits.coding.codec import Cursor
from fewbits.coding.mix.settings import Settings
from fewbits.container import decode, encode, inspect, measure
from fewbits.container.frame import DICTIONARY
from fewbits.container.reader import open_file
from fewbits.engine.layers.pack import to_torch
from random_contents import random_contents

HERE = Path(__file__).parent


def golden(name):
    return (HERE / f"{name}.fewbits").read_bytes()


def split(data):
    """Return the bodies with their checksums, and the index."""
    opened = open_file(data)
    stored = data[opened.payload_end : -22]
    index = json.loads(zlib.decompressobj(-15, DICTIONARY).decompress(stored))
    return data[10 : opened.payload_end], index


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
    sums = (HERE / name).with_name("SHA256SUMS").read_text(encoding="ascii").split()
    known = dict(zip(sums[1::2], sums[::2], strict=True))
    assert hashlib.sha256(golden(name)).hexdigest() == known[Path(name).name + ".fewbits"]


def test_golden_files_stay_small():
    files = {f"{path.parent.name}/{path.stem}" for path in HERE.glob("v*/*.fewbits")}
    assert files == set(EXAMPLES)
    assert sum(len(golden(name)) for name in EXAMPLES) < 32_000


def test_golden_files_hold_every_codec_and_every_setting():
    codecs, settings, shared = set(), [], 0
    for name in EXAMPLES:
        data = golden(name)
        for span in open_file(data).spans:
            codecs.add(span.codec)
            if span.codec == 3:
                cursor, before = Cursor(data[span.start : span.end]), None
                for _ in span.chunks:
                    shared += cursor.data[cursor.position] >= 64
                    before = Settings.parse(cursor, before)
                    settings.append(before)
    assert codecs == {0, 1, 2, 3, 4, 5, 6, 7}
    assert {s.period for s in settings} == {1, 2, 3}
    assert {s.pictures for s in settings} == {False, True}
    assert max(s.shift for s in settings) > 3
    assert shared > 3


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_golden_file_decodes_to_what_was_put_in(name):
    contents = EXAMPLES[name][0]()
    assert same(decode(golden(name)), contents)
    assert list(decode(golden(name)).tensors) == list(contents.tensors)


@pytest.mark.parametrize("name", LARGER)
def test_the_writer_takes_fewer_bytes_than_for_some(name):
    contents, effort = EXAMPLES[name]
    assert len(encode(contents(), effort)) < len(golden(name))


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name not in LARGER])
def test_the_writer_still_writes_the_same(name):
    """All but what depends on the machine's zlib."""
    contents, effort = EXAMPLES[name]
    assert split(encode(contents(), effort)) == split(golden(name))


@pytest.mark.parametrize("name", EXAMPLES)
def test_inspect_and_measure_agree_and_sum_to_the_file(name):
    info = inspect(HERE / f"{name}.fewbits")
    assert f"v{info.version[0]}.{info.version[1]}" == name[:4]
    assert info.report == measure(golden(name))
    assert info.report.file_bytes == len(golden(name))
    assert same(info.activations, EXAMPLES[name][0]().activations)


def leaf_is(leaf, tensor):
    assert (leaf.dtype, tuple(leaf.shape)) == (tensor.dtype, tensor.shape)
    assert leaf.index == tensor.index.reshape(-1).tolist()
    assert tuple(leaf.matrix) == tensor.index.shape
    layout = tensor.layout and (list(tensor.layout.split), list(tensor.layout.axes))
    assert leaf.layout == layout
    if leaf.kind == "g":
        assert leaf.steps == tensor.step.tolist()
        assert leaf.all_offsets == tensor.offset.tolist()
    elif leaf.kind == "a":
        assert leaf.steps == tensor.step.tolist()
        assert leaf.given_offsets == tensor.minimum.tolist()
    else:
        assert leaf.steps == tensor.scale.tolist()


def bytes_of(tensor):
    flat = tensor.reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def entry_is(entry, tensor):
    if isinstance(tensor, RawTensor):
        assert (entry.dtype, entry.stored) == (tensor.dtype, tensor.stored)
        assert entry.bytes == tensor.data.tobytes()
    elif isinstance(tensor, TransformTensor):
        assert entry.side == (tensor.side == "right")
        leaf_is(entry.parts[0], tensor.coefficients)
        leaf_is(entry.parts[1], tensor.basis)
    else:
        leaf_is(entry, tensor)
    found = to_torch(tensor)
    if not found.is_floating_point() or not bool(found.isnan().any()):  # of any payload
        assert entry.data == bytes_of(found)


def plain_reader_reads(data, contents):
    found = plain_reader.read(data)
    assert list(found.entries) == list(contents.tensors)
    assert found.metadata == contents.metadata
    assert found.aliases == contents.aliases
    assert found.activations == {
        name: (grid.bits, grid.signed, grid.zero, grid.clip)
        for name, grid in contents.activations.items()
    }
    for name, entry in found.entries.items():
        entry_is(entry, contents.tensors[name])


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_plain_reader_reads_the_same_from_the_specification_alone(name):
    plain_reader_reads(golden(name), EXAMPLES[name][0]())


@pytest.mark.parametrize(
    "seed", [*range(5), *(pytest.param(s, marks=pytest.mark.slow) for s in range(5, 60))]
)
def test_the_plain_reader_reads_what_the_library_writes(seed):
    contents = random_contents(np.random.default_rng(seed))
    data = encode(contents, ("fast", "balanced", "smallest")[seed % 3])
    assert same(decode(data), contents)
    plain_reader_reads(data, contents)


@pytest.mark.parametrize("name", ["v2.0/shared", "v2.0/kinds", "v2.0/empty"])
def test_the_plain_reader_refuses_damage(name):
    data = golden(name)
    rng = np.random.default_rng(1)
    for place in rng.choice(len(data), 24).tolist():
        broken = bytearray(data)
        broken[place] ^= 1 << int(rng.integers(8))
        for wrong in (bytes(broken), data[:place], data + data[:1]):
            with pytest.raises(plain_reader.Refused):
                plain_reader.read(wrong)


def test_the_specification_prints_the_dictionary():
    assert plain_reader.dictionary() == DICTIONARY
