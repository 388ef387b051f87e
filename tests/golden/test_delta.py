"""Deltas that are kept for ever, and one more reader of deltas, written from SPEC.md, section 9."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import torch

import fewbits
import plain_reader
from examples import bell, noise
from fewbits.coded import (
    AffineTensor,
    Codebook,
    CodebookTensor,
    Contents,
    GridTensor,
    TransformTensor,
)
from fewbits.compression.deltas.delta import Division, exactly
from fewbits.container import encode
from fewbits.container.frame import DELTA_MAGIC, MAGIC
from fewbits.engine.layers.pack import pack_raw
from plain_reader import values

PATH = Path(__file__).parent / "v2.1" / "change.delta"
SHA256 = "a492c5a7ef5db0a24affed48e2364c931081dbb12f36fa61660001f671348f10"


def states():
    """Return the new state dict and its base, from integer arithmetic alone."""
    brain = torch.from_numpy(bell((40, 25), 3, 1).astype(np.int16) * 7).view(torch.bfloat16)
    step = torch.from_numpy((noise(1000, 5) % 5 // 2 - 1).astype(np.int16).reshape(40, 25))
    sparse = torch.arange(600, dtype=torch.int32)
    base = {"a.weight": brain, "b": sparse, "gone": torch.ones(3), "same": torch.arange(4)}
    new = {"a.weight": (brain.view(torch.int16) ^ step).view(torch.bfloat16), "b": sparse.clone()}
    new["b"][7], new["b"][400] = -(2**31), 77_000
    new |= {"same": base["same"], "new": torch.tensor([0.5, -2.0]), "tied": base["same"]}
    return new, base


def test_the_delta_is_the_one_that_was_written():
    data = PATH.read_bytes()
    assert hashlib.sha256(data).hexdigest() == SHA256
    new, base = states()
    found = fewbits.apply_delta(data, base)
    assert set(found) == set(new)
    for name, tensor in new.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8))


def test_the_writer_still_writes_the_same_bodies():
    """All but what depends on the machine's zlib."""
    data, again = PATH.read_bytes(), fewbits.encode_delta(*states(), threads=1)
    lengths = [len(x) - 22 - struct.unpack_from("<I", x, len(x) - 20)[0] for x in (data, again)]
    assert data[: lengths[0]] == again[: lengths[1]]


def rising(bits, width, floats):
    signed = bits - 2**width if bits >> (width - 1) else bits
    return signed ^ (2 ** (width - 1) - 1) if floats and signed < 0 else signed


def plainly(classes, rest, old, width, floats):
    """Apply the differences of one block of values, given as unsigned integers."""
    order = list(range(len(old)))
    if floats:
        order.sort(key=lambda at: -((2 * old[at] % 2**width) >> (width - 8)))
    size, fields, taken = [abs(c) for c in classes], "".join(f"{b:08b}" for b in rest), 0
    for below in range(3, 31):
        places = [
            at for at, c in enumerate(classes) if abs(c) >= 16 and (abs(c) - 16) // 2 == below - 3
        ]
        for at in places:
            upper = (abs(classes[at]) - 16) % 2
            size[at] = ((2 + upper) << below) + int(fields[taken : taken + below], 2)
            taken += below
        taken = -(-taken // 8) * 8
    assert taken == len(fields)
    out = [0] * len(old)
    for at, c, many in zip(order, classes, size, strict=False):
        value = rising(old[at], width, floats) + (-many if c < 0 else many)
        value = (value + 2 ** (width - 1)) % 2**width - 2 ** (width - 1)
        out[at] = (value ^ (2 ** (width - 1) - 1) if floats and value < 0 else value) % 2**width
    return out


def test_a_plain_reader_applies_it():
    data = PATH.read_bytes()
    assert data[:8] == DELTA_MAGIC
    found = plain_reader.read(MAGIC + data[8:])
    new, base = states()
    told = found.metadata["delta"]
    assert told["removed"] == ["gone"]
    assert told["aliases"] == {"tied": "same"}
    digest = hashlib.sha256()
    for name in sorted(base):
        tensor = base[name]
        dtype, shape = str(tensor.dtype)[6:], list(tensor.shape)
        digest.update(f"{len(name)} {name} {dtype} {shape}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    assert told["base"] == digest.hexdigest()[:32]
    names = list(found.entries)
    assert told["differences"] == 2
    assert names[4:] == ["new"]
    for name, rest in ((names[0], names[1]), (names[2], names[3])):
        matrix, tensor = found.entries[name], base[name]
        width, kind = 8 * tensor.itemsize, f"<u{tensor.itemsize}"
        columns = min(tensor.numel(), 256)
        assert tuple(matrix.matrix) == (-(-tensor.numel() // columns), columns)
        classes, old = matrix.index, tensor.reshape(-1).view(torch.uint8).numpy().view(kind)
        assert not any(classes[len(old) :])
        after = plainly(
            classes[: len(old)],
            found.entries[rest].bytes,
            old.tolist(),
            width,
            tensor.is_floating_point(),
        )
        wanted = new[name].reshape(-1).view(torch.uint8).numpy().view(kind)
        assert after == wanted.tolist()


ADDED = PATH.with_name("added.delta")
SMALL = ((3, 2), (2, 4))
ADDED_SHA256 = "a4142139ba78f58d56fa9ffcf23319e8df467678c0d3f6ced3cb1e38e756d4e1"


def added():
    """Return what a delta holds that adds to tensors of every dtype that it can, and its base."""
    matrix = bell((40, 25), 3, 1)
    bits = (np.abs(matrix) * 7 + 0x3A00 + (matrix < 0) * 0x8000).astype(np.uint16)
    base = {
        "brain": torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16),
        "single": torch.arange(-30, 30, dtype=torch.float32) / 8,
        "half": torch.arange(48, dtype=torch.float16).reshape(6, 8) / 3,
        "double": torch.arange(1, 13, dtype=torch.float64).reshape(3, 4) / 7,
        "steps": torch.arange(40, dtype=torch.int32),
        "same": torch.ones(4),
    }
    new = {"steps": base["steps"] + 3, "same": base["same"], "more": torch.tensor([2.5])}
    step = np.array([2.0**-9, 3 * 2.0**-8], np.float32)
    basis, rest = (GridTensor(shape, "float32", bell(shape, 8), step[:1]) for shape in SMALL)
    sums = {
        "brain": GridTensor((40, 25), "float32", bell((40, 25), 9), np.repeat(step, 20)),
        "single": CodebookTensor(
            (60,),
            "float32",
            (noise(60, 3) % 3).astype(np.int32).reshape(60, 1),
            Codebook(np.array([-1 / 3, 0, 2.0**-20], np.float32)),
        ),
        "half": AffineTensor((6, 8), "float32", bell((6, 8), 2), step[:1], -step[1:]),
        "double": TransformTensor((3, 4), "float32", rest, basis, "left", None),
    }
    division = Division.of(new, {k: v for k, v in base.items() if k not in sums})
    classes, below = exactly(new["steps"], base["steps"])
    tensors = {"steps": classes, "steps.rest": below, **sums, "more": pack_raw(new["more"])}
    told = division.facts(base, [], {"tied": "same"}, len(sums))
    metadata = {"delta": told, "recipe": {}}
    return Contents(tensors, {"other": "brain"}, metadata=metadata, is_delta=True), base


def test_the_delta_that_adds_is_the_one_that_was_written():
    data, (contents, base) = ADDED.read_bytes(), added()
    assert hashlib.sha256(data).hexdigest() == ADDED_SHA256
    again = encode(contents, "balanced", threads=1)
    lengths = [len(x) - 22 - struct.unpack_from("<I", x, len(x) - 20)[0] for x in (data, again)]
    assert data[: lengths[0]] == again[: lengths[1]]
    assert int.from_bytes(data[-22:-20], "little") == 1
    found = fewbits.apply_delta(data, base)
    assert set(found) == {*base, "more", "tied", "other"}
    assert torch.equal(found["steps"], base["steps"] + 3)
    assert found["tied"] is base["same"]
    assert found["other"] is found["brain"]


def test_a_plain_reader_adds():
    data, (_, base) = ADDED.read_bytes(), added()
    read = plain_reader.read(MAGIC + data[8:])
    told = read.metadata["delta"]
    assert (told["differences"], told["added"]) == (1, 4)
    found = fewbits.apply_delta(data, base)
    for name in list(read.entries)[2:6]:
        tensor = base[name]
        dtype = str(tensor.dtype)[6:]
        old = values.floats(tensor.reshape(-1).view(torch.uint8).numpy().tobytes(), dtype)
        sums = [a + b for a, b in zip(old, read.entries[name].float32, strict=True)]
        if dtype != "float64":
            sums = [values.f32(value) for value in sums]
        wanted = values.to_bytes(sums, dtype)
        assert found[name].reshape(-1).view(torch.uint8).numpy().tobytes() == wanted
        assert wanted != tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
