"""Decoded weights of a network, within a bound on their bytes, decoded ahead of their use."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["HELD_BYTES", "WeightSpec", "WeightStore"]

HELD_BYTES = 1 << 25  # of decoded weights, unless a single one has more


@dataclass(frozen=True)
class WeightSpec:
    """A weight as a network has it.

    Attributes:
        name: name of the tensor in the file.
        shape: its shape.
        strides: its strides in the network, in elements.
        dtype: its dtype in the network.
        device: where its values go when they are decoded.
    """

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded values."""
        return prod(self.shape) * self.dtype.itemsize

    def convert(self, values: Tensor) -> Tensor:
        """Return ``values`` as the network has them; ``values`` themselves if they are so."""
        like = torch.empty_strided(self.shape, self.strides, device="meta")
        if like.is_contiguous():
            return values.to(self.device, self.dtype)
        new = torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)
        return new.copy_(values)


Decode: TypeAlias = Callable[[WeightSpec, int], Tensor]


class WeightStore:
    """Decodes weights on request, and the ones that followed it last time on other threads.

    Keeps at most ``limit`` bytes of decoded weights, dropping the least recently used ones; values
    that an operation is using live until it ends. Any number of threads may request weights.

    Args:
        decode: returns the values of a weight, decoded on that many threads; called on several
            threads at once.
        threads: threads that decode ahead; with one, nothing is decoded ahead.
        close: called when the store is no longer in use.

    Attributes:
        limit: largest number of bytes held: ``HELD_BYTES``, or those of the largest weight.
    """

    def __init__(self, decode: Decode, threads: int, close: Callable[[], None]) -> None:
        self.limit = HELD_BYTES
        self._decode = decode
        self._threads = threads
        self._lock = threading.Lock()
        self._forget()
        self._following: dict[WeightSpec, WeightSpec] = {}
        weakref.finalize(self, close)

    def _forget(self) -> None:
        """Start with nothing decoded and no threads, as in a forked process."""
        self._process = os.getpid()
        self._pool: ThreadPoolExecutor | None = None
        self._held: OrderedDict[WeightSpec, Future[Tensor]] = OrderedDict()
        self._bytes = 0
        self._last = threading.local()

    @property
    def held_bytes(self) -> int:
        """Bytes of decoded weights that are held or being decoded."""
        return self._bytes

    def expect(self, specs: Iterable[WeightSpec]) -> None:
        """Tell all weights, in the order of the file: a first guess at the order of their use."""
        specs = list(dict.fromkeys(specs))
        self._following = dict(zip(specs, [*specs[1:], *specs[:1]], strict=True))
        self.limit = max([HELD_BYTES, *(spec.nbytes for spec in specs)])

    def get(self, spec: WeightSpec) -> Tensor:
        """Return the values of a weight, which must not be changed.

        Raises:
            CorruptFileError: they cannot be read or decoded.
        """
        with self._lock:
            if self._process != os.getpid():
                self._forget()
            self._learn(spec)
            future = self._held.get(spec)
            if future is not None and not future.cancel():  # begun on another thread, or done
                self._hold(spec, future)
                mine = False
            else:
                self._drop(spec)
                future, mine = Future(), True
                future.set_running_or_notify_cancel()
                self._hold(spec, future)
        if mine:
            try:
                future.set_result(self._decode(spec, self._share(spec)))
            except BaseException as error:
                future.set_exception(error)
        return self._result(spec, future)

    def _result(self, spec: WeightSpec, future: Future[Tensor]) -> Tensor:
        try:
            return future.result()
        except BaseException:
            with self._lock:
                if self._held.get(spec) is future:
                    self._drop(spec)  # to be tried again
            raise

    def _learn(self, spec: WeightSpec) -> None:
        before = getattr(self._last, "spec", spec)
        if before != spec:
            self._following[before] = spec
        self._last.spec = spec

    def _hold(self, spec: WeightSpec, future: Future[Tensor]) -> None:
        """Hold a weight and start decoding the ones after it, as far as there is room."""
        window = {spec: future} | dict.fromkeys(self._ahead(spec))
        missing = [one for one in window if one not in self._held]
        excess = self._bytes + sum(one.nbytes for one in missing) - self.limit
        for old in [one for one in self._held if one not in window]:
            if excess <= 0:
                break
            excess -= old.nbytes
            self._drop(old)
        for one in missing:
            self._bytes += one.nbytes
            self._held[one] = future if one == spec else self._start(one)
        for one in window:
            self._held.move_to_end(one)

    def _ahead(self, spec: WeightSpec) -> list[WeightSpec]:
        """Return the weights expected next that fit beside ``spec``, two for each thread."""
        room, found = self.limit - spec.nbytes, [spec]
        while self._threads > 1 and len(found) <= 2 * self._threads:
            following = self._following.get(found[-1])
            if following is None or following in found or following.nbytes > room:
                break
            room -= following.nbytes
            found.append(following)
        return found[1:]

    def _share(self, spec: WeightSpec) -> int:
        """Return the threads that decode a weight: all, if it is so large that others must wait."""
        return self._threads if 2 * spec.nbytes > self.limit else 1

    def _start(self, spec: WeightSpec) -> Future[Tensor]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="fewbits-decode")
        return self._pool.submit(self._decode, spec, self._share(spec))

    def _drop(self, spec: WeightSpec) -> None:
        future = self._held.pop(spec, None)
        if future is not None:
            self._bytes -= spec.nbytes
            future.cancel()
