"""Weights that are read from disk when they are used, and need no memory afterwards."""

from __future__ import annotations

import errno
import gc
import os
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

import fewbits
from fewbits.engine.paged.paging import (
    Pager,
    Scratch,
    empty_weights,
    mapped_tensor,
    open_mapping,
    trim_heap,
)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(9, 6), nn.BatchNorm1d(6)
        self.lstm, self.lazy = nn.LSTM(6, 4), nn.LazyLinear(3)
        self.head = nn.Linear(6, 9)
        self.head.weight = self.table.weight
        self.scale = nn.Parameter(torch.ones(3), requires_grad=False)
        self.register_parameter("absent", None)
        self.register_buffer("positions", torch.arange(5))


def test_parameters_are_on_meta_and_buffers_have_values():
    with empty_weights():
        network = Mixed()
    parameters = dict(network.named_parameters())
    lazy = {name for name in parameters if name.startswith("lazy")}
    assert lazy
    assert all(parameters[name].is_meta for name in parameters.keys() - lazy)
    assert all(isinstance(parameters[name], nn.UninitializedParameter) for name in lazy)
    assert network.positions.tolist() == [0, 1, 2, 3, 4]
    assert network.norm.running_var.tolist() == [1] * 6
    assert network.head.weight is network.table.weight
    assert not network.scale.requires_grad
    assert network.head.bias.requires_grad
    assert network.absent is None
    assert all(weight.is_meta for weight in network.lstm._flat_weights)


def test_networks_are_built_as_usual_after_the_block():
    before = nn.Module.register_parameter

    def build():
        with empty_weights():
            with empty_weights():
                assert nn.Linear(2, 2).weight.is_meta
            assert nn.Linear(2, 2).weight.is_meta  # the outer block goes on
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        build()
    assert nn.Module.register_parameter is before
    assert not nn.Linear(2, 2).weight.is_meta


def test_it_is_public():
    with fewbits.empty_weights():
        assert nn.Linear(2, 2).weight.is_meta


def mapping_of(path: Path, data: bytes, *, shared: bool = False):
    path.write_bytes(data)
    with path.open("r+b") as file:
        return open_mapping(file, shared=shared)


def test_tensors_over_a_mapped_file_at_any_offset(tmp_path):
    values = torch.randn(3, 4)
    data = values.numpy().tobytes()
    mapping = mapping_of(tmp_path / "a", b"\0" * 5 + data + b"\0" * 3 + data)
    for offset in (5, 5 + 48 + 3):
        assert torch.equal(mapped_tensor(mapping, offset, (3, 4), torch.float32), values)
    assert mapped_tensor(mapping, 0, (0, 4), torch.float32).shape == (0, 4)
    assert mapped_tensor(mapping, len(mapping), (0,), torch.int8).shape == (0,)
    scalar = mapped_tensor(mapping, 5, (), torch.float32)
    assert scalar.shape == ()
    assert scalar == values[0, 0]


@pytest.mark.parametrize("dtype", [torch.bool, torch.float8_e4m3fn, torch.bfloat16, torch.int64])
def test_tensors_of_all_dtypes(dtype, tmp_path):
    values = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    data = bytes(values.view(torch.uint8).tolist())
    for offset in (0, 1, 8):
        mapping = mapping_of(tmp_path / "a", b"\0" * offset + data)
        found = mapped_tensor(mapping, offset, (5,), dtype)
        assert found.dtype == dtype
        assert torch.equal(found.float(), values.float())


def test_a_tensor_keeps_its_mapping_and_a_write_to_it_is_private(tmp_path):
    mapping = mapping_of(tmp_path / "a", bytes(64))
    tensor = mapped_tensor(mapping, 0, (64,), torch.uint8)
    known = weakref.ref(mapping)
    del mapping
    gc.collect()
    assert known() is not None
    tensor.fill_(1)
    assert (tmp_path / "a").read_bytes() == bytes(64)


def resident() -> int:
    """Bytes of mapped files in the memory of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    found = {key: value for key, _, value in (line.partition(":") for line in lines)}
    return 1024 * sum(int(found[key].split()[0]) for key in ("RssFile", "RssShmem"))


@pytest.mark.skipif(sys.platform != "linux", reason="pages are dropped on Linux")
@pytest.mark.parametrize("shared", [False, True])
def test_released_pages_need_no_memory_and_keep_their_values(shared, tmp_path):
    size = 1 << 26
    path = tmp_path / "big"
    with path.open("w+b") as file:
        file.truncate(size)
        mapping = open_mapping(file, shared=shared)
    tensor, pager = mapped_tensor(mapping, 0, (size,), torch.uint8), Pager()
    pager.add(mapping)
    if shared:
        tensor[::4096] = 3
    before = resident()
    total = int(tensor[::4096].sum())
    touched = resident()
    pager.release()
    trim_heap()
    after = resident()
    assert touched >= size // 2
    assert touched - after > size // 2
    assert after <= before + (1 << 22)
    assert int(tensor[::4096].sum()) == total == (3 * size // 4096 if shared else 0)


class Counting(Pager):
    """Counts how often pages are dropped."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.drops = 0

    def release(self) -> None:
        self.drops += 1
        super().release()


def test_pages_are_dropped_as_passes_touch_more_than_the_limit():
    network = nn.Sequential(nn.Linear(10, 10, bias=False), nn.ReLU(), nn.Linear(10, 10, bias=False))
    pager = Counting(1000)
    pager.watch(network)
    network(torch.ones(1, 10))  # 400 + 400
    assert pager.drops == 0
    network(torch.ones(1, 10))  # 1200
    assert pager.drops == 1
    for _ in range(10):
        network(torch.ones(1, 10))
    assert pager.drops == 11  # at the 3rd, 5th, ... 23rd of 24 touches
    pager.touch(5000)
    pager.touch(1)
    assert pager.drops == 13


def test_a_mapping_that_nothing_uses_is_let_go(tmp_path):
    pager, mapping = Pager(), mapping_of(tmp_path / "a", bytes(8192))
    pager.add(mapping)
    known = weakref.ref(mapping)
    del mapping
    gc.collect()
    assert known() is None
    pager.release()


def test_scratch_holds_values_of_every_dtype_and_leaves_no_file(tmp_path):
    values = {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).half(),
        "none": torch.empty(0, 4),
        "strided": torch.randn(4, 6).t(),
        "c": torch.randn(5).bfloat16(),
        "d": torch.randn(2, 2).double(),
    }
    scratch = Scratch(tmp_path, {name: value.nbytes for name, value in values.items()})
    held = {name: scratch.put(name, value) for name, value in values.items()}
    pager = Pager()
    pager.add(scratch.mapping)
    pager.release()
    for name, value in values.items():
        assert held[name].dtype == value.dtype
        assert torch.equal(held[name], value)
    again = scratch.put("a", torch.zeros(3, 5))
    assert not held["a"].any()
    assert not again.any()
    assert torch.equal(held["b"], values["b"])
    assert list(tmp_path.iterdir()) == []


def test_scratch_of_nothing(tmp_path):
    assert len(Scratch(tmp_path, {}).mapping) == 1


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="room cannot be reserved")
def test_no_room_is_an_error_at_once_and_leaves_no_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"No space left.*take 1,048,576 bytes.*set TMPDIR") as raised:
        Scratch(tmp_path, {"a": 1 << 20})
    assert raised.value.filename == str(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_that_two_modules_register_stays_one():
    with empty_weights():
        weight = nn.Parameter(torch.empty(3, 2))
        first, second = nn.Linear(2, 3, bias=False), nn.Linear(2, 3, bias=False)
        first.weight = weight
        second.weight = weight
    assert first.weight is second.weight
    assert first.weight.is_meta
