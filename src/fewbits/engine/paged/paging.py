"""Weights that are read from disk when they are used, and need no memory afterwards.

Tensors over a memory-mapped file are read by the operating system when they are touched. A
:class:`Pager` gives their memory back as a forward pass goes on: after it has touched a bounded
number of bytes, all pages are dropped and are read again when needed. So any network works, in
whatever way it uses its weights; the memory that it takes at a time is that of a few layers.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Pager", "Scratch", "empty_weights", "mapped_tensor", "open_mapping", "trim_heap"]

RESIDENT = 1 << 25  # bytes of weights that may be touched before pages are dropped
_ALIGNED = 64
_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
_DROP = getattr(mmap, "MADV_DONTNEED", None) if sys.platform == "linux" else None


@contextmanager
def empty_weights() -> Iterator[None]:
    """Build networks without weights: parameters on the meta device, buffers as usual.

    Inside the block, every parameter that a module registers is replaced by one on the ``meta``
    device before it is initialized, which takes neither memory nor time. Buffers, such as tables of
    positions, have values, unlike those of a network that is built on ``torch.device("meta")``.
    A parameter that several modules register stays one. The block affects all threads. For
    ``compress(..., weights=)`` and ``load(..., into=)``.
    """
    known = WeakTensorKeyDictionary()  # parameter to the one that stands for it

    def emptied(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta or nn.parameter.is_lazy(parameter):
            return None
        if parameter not in known:
            known[parameter] = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        return known[parameter]

    hook = register_module_parameter_registration_hook(emptied)
    try:
        yield
    finally:
        hook.remove()


def open_mapping(file: BinaryIO, *, shared: bool) -> mmap.mmap:
    """Map a whole file into memory: writes go to the file if ``shared``, else nowhere."""
    access = mmap.ACCESS_WRITE if shared else mmap.ACCESS_COPY
    return mmap.mmap(file.fileno(), 0, access=access)


def mapped_tensor(
    mapping: mmap.mmap, offset: int, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor:
    """Return a tensor over bytes of a mapped file; it keeps the mapping open."""
    count = 1
    for size in shape:
        count *= size
    if not count:
        return torch.empty(shape, dtype=dtype)
    if offset % dtype.itemsize:  # torch needs aligned memory
        data = bytearray(mapping[offset : offset + count * dtype.itemsize])
        return torch.frombuffer(data, dtype=dtype).reshape(shape)
    return torch.frombuffer(mapping, dtype=dtype, count=count, offset=offset).reshape(shape)


def trim_heap() -> None:
    """Give memory back to the system that was freed: the C library may hoard it.

    Cost: a few milliseconds; does nothing where the C library has no such function.
    """
    if _TRIM is not None:
        _TRIM(0)


class Pager:
    """Drops the pages of mapped files while forward passes go on.

    Args:
        limit: bytes of parameters that may be touched between two drops.
    """

    def __init__(self, limit: int = RESIDENT) -> None:
        self._limit = limit
        self._touched = 0
        self._mappings: WeakSet[mmap.mmap] = WeakSet()  # a tensor over one keeps it

    def add(self, mapping: mmap.mmap) -> None:
        """Manage another mapped file, as long as something refers to it."""
        self._mappings.add(mapping)

    def watch(self, network: nn.Module) -> None:
        """Count the parameters of every module of ``network`` that is called, from now on."""
        for module in network.modules():
            size = sum(p.nbytes for p in module._parameters.values() if p is not None)
            if size and not isinstance(module, torch.jit.ScriptModule):
                module.register_forward_pre_hook(self._counting(size))

    def touch(self, size: int) -> None:
        """Note that ``size`` more bytes are about to be used."""
        self._touched += size
        if self._touched > self._limit:
            self.release()
            self._touched = size

    def release(self) -> None:
        """Drop all pages; values stay, in the files."""
        self._touched = 0
        if _DROP is None:  # other systems take pages back when memory runs short
            return
        for mapping in list(self._mappings):
            mapping.madvise(_DROP)

    def _counting(self, size: int) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, args: Any) -> None:
            self.touch(size)

        return enter


class Scratch:
    """A file for the quantized values of weights, so that they take no memory once used.

    Args:
        folder: where to create it; it has no name, so it vanishes with the process.
        sizes: bytes of each weight, by name.

    Raises:
        OSError: there is no room for it.
    """

    def __init__(self, folder: str | os.PathLike[str], sizes: Mapping[str, int]) -> None:
        self._offsets, length = _offsets(sizes.items())
        path = Path(folder) / "quantized.bin"
        try:
            with path.open("w+b") as file:
                _reserve(file, max(1, length), folder)
                self.mapping = open_mapping(file, shared=True)
        finally:
            with suppress(OSError):  # not every system lets go of a mapped file
                path.unlink()

    def put(self, name: str, values: Tensor) -> Tensor:
        """Store the values of a weight; return them as a tensor over the file."""
        shape, dtype = tuple(values.shape), values.dtype
        target = mapped_tensor(self.mapping, self._offsets[name], shape, dtype)
        return target.copy_(values)


def _offsets(sizes: Iterable[tuple[str, int]]) -> tuple[dict[str, int], int]:
    offsets, length = {}, 0
    for name, size in sizes:
        offsets[name] = length
        length += -(-size // _ALIGNED) * _ALIGNED
    return offsets, length


def _reserve(file: BinaryIO, length: int, folder: str | os.PathLike[str]) -> None:
    """Give a file its length on disk: writing to a mapped file that finds none is fatal."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, length)
        else:
            file.truncate(length)
    except OSError as error:
        what = f"{error.strerror}: the quantized weights take {length:,} bytes there"
        advice = "Make room, or set TMPDIR (or resume=) to a folder on another disk"
        raise OSError(error.errno, f"{what}. {advice}", os.fspath(folder)) from error
