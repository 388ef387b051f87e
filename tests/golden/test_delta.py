"""A delta that is kept for ever, and one more reader of deltas, written from SPEC.md, section 9."""

import hashlib
import struct
from pathlib import Path

import numpy as np
import torch

import fewbits
import plain_reader
from examples import bell, noise
from fewbits.container.frame import DELTA_MAGIC, MAGIC

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
