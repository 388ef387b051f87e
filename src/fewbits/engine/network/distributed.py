"""Everything that the processes of a ``torch.distributed`` group tell each other; no-ops if alone.

``DistributedDataParallel`` averages the gradients of the network inside it, but not of learnables
of a method or of teachers that are trained along: :func:`average` and its like do that. A
compression shares its work over :class:`Ranks`: every rank makes the same calls in the same order,
and each of these calls is also where a rank learns that another one failed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from ... import errors
from ...errors import ConfigError, FewbitsError, RankError, is_number, require

__all__ = [
    "ALONE",
    "TIMEOUT",
    "Ranks",
    "active",
    "average",
    "average_gradients",
    "in_group",
    "process_count",
    "shared_work",
    "take_from_first",
]

TIMEOUT = "FEWBITS_RANK_TIMEOUT"
_SECONDS = 1800.0  # as long as torch waits; the longest layer, or a whole evaluation, may take it
_OTHER = (errors.MissingExtraError,)  # errors that are not made of a message alone
_WHERE = re.compile(r"^\[[^\]]*\] *")  # of a source file of gloo
_T = TypeVar("_T")


def in_group() -> bool:
    """Return whether this process belongs to a group, even if alone in it."""
    return dist.is_available() and dist.is_initialized()


def process_count() -> int:
    """Return the number of processes in the group of this one."""
    return dist.get_world_size() if in_group() else 1


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replace every tensor by its mean over the processes."""
    count = process_count()
    if count == 1:
        return
    own = [tensor.detach() for tensor in tensors]
    # Start all at once: for small tensors latency matters, not bandwidth.
    for work in [dist.all_reduce(tensor, async_op=True) for tensor in own]:
        work.wait()
    for tensor in own:
        tensor.div_(count)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every existing gradient by its mean over the processes.

    All processes must have gradients of the same parameters, in the same order.
    """
    average(p.grad for p in parameters if p.grad is not None)


@torch.no_grad()
def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Broadcast the first process's values to all others."""
    if process_count() == 1:
        return
    for work in [dist.broadcast(tensor.detach(), 0, async_op=True) for tensor in tensors]:
        work.wait()


class Ranks:
    """The processes that share one compression, and which of them this is.

    Every method that takes ``what`` is a meeting: all ranks must call it, in the same order, with
    the same text, which says in messages how far the work had come.

    Args:
        rank: number of this process.
        count: number of processes; one needs no group, and every meeting is over at once.
        group: a group with the backend gloo; tensors on other devices go through main memory.
    """

    def __init__(self, rank: int = 0, count: int = 1, group: Any = None) -> None:
        self.rank, self.count = rank, count
        self._group = group
        self._over = False

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and tells."""
        return self.rank == 0

    def own(self, places: int) -> range:
        """Return which of so many places this rank works on: every ``count``-th."""
        return range(self.rank, places, self.count)

    def exchange(self, what: str, value: _T) -> list[_T]:
        """Return the values of all ranks, in their order.

        Raises:
            RankError: a rank is gone, or at another step.
            FewbitsError: another rank failed; of the kind of its error.
        """
        return [value] if self.count == 1 else self._meet(what, value, None)

    def total(self, what: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the sums over ranks, by name; a rank that lacks a name adds nothing to it.

        Names are in the order in which the ranks have them, the first rank's before all others.
        The tensors that are passed may be overwritten.
        """
        if self.count == 1:
            return dict(tensors)
        known: dict[str, tuple[torch.Size, torch.dtype]] = {}
        for told in self.exchange(what, {n: (t.shape, t.dtype) for n, t in tensors.items()}):
            known |= {name: form for name, form in told.items() if name not in known}
        sums = {}
        for name, (shape, dtype) in known.items():
            own = tensors.get(name)
            held = torch.zeros(shape, dtype=dtype) if own is None else own.detach().cpu()
            held = held.contiguous()
            with self._noticing(what):
                dist.all_reduce(held, group=self._group)
            sums[name] = held if own is None else held.to(own.device)
        return sums

    def from_first(self, what: str, make: Callable[[], _T]) -> _T:
        """Return what ``make`` returns at the first rank; the others wait for it."""
        return self.dealt(what, [make], [0.0])[0]

    def dealt(
        self, what: str, makers: Sequence[Callable[[], _T]], costs: Sequence[float]
    ) -> list[_T]:
        """Return what each of ``makers`` returns, at the rank that it is dealt to by its cost."""
        owners = deal(costs, self.count)
        made = {k: make() for k, make in enumerate(makers) if owners[k] == self.rank}
        if self.count == 1:
            return [made[k] for k in range(len(makers))]
        found: dict[int, _T] = {}
        for part in self.exchange(what, {k: _compact(value) for k, value in made.items()}):
            found |= part
        return [made.get(k, found[k]) for k in range(len(makers))]

    def compare(self, what: str, facts: Mapping[str, str]) -> None:
        """Check that all ranks have the same facts.

        Raises:
            ConfigError: they do not; names the facts that differ, and the ranks.
        """
        first, *others = self.exchange(what, dict(facts))
        wrong = {
            name: [rank for rank, other in enumerate(others, 1) if other.get(name) != value]
            for name, value in first.items()
        }
        told = [
            f"{name} ({_listed(ranks)}{_values(first[name], others[ranks[0] - 1].get(name))})"
            for name, ranks in wrong.items()
            if ranks
        ]
        if told:
            raise ConfigError(
                f"{what}: not all ranks are given the same as rank 0. What differs: "
                f"{'; '.join(told)}. Start every rank with the same command, data and versions."
            )

    def fail(self, error: Exception) -> None:
        """Tell the other ranks, at their next meeting, that this one failed."""
        if self.count > 1 and not self._over:
            with suppress(FewbitsError):
                self._meet("", None, error)

    def _meet(self, what: str, value: Any, error: Exception | None) -> list[Any]:
        failed = "" if error is None else type(error).__name__
        told = (what, failed, "" if error is None else str(error), value)
        answers: list[Any] = [None] * self.count
        with self._noticing(what):
            dist.all_gather_object(answers, told, group=self._group)
        self._over = any(kind for _, kind, _, _ in answers)
        for rank, (_, kind, text, _) in enumerate(answers):
            if kind and error is None:
                raise _error_of(rank, kind, text)
        steps = {step for step, *_ in answers}
        if len(steps) > 1 and error is None:
            self._over = True
            raise RankError(
                f"the ranks are at different steps: {', '.join(map(repr, sorted(steps)))}. Every "
                "rank must make the same calls of fewbits, in the same order."
            )
        return [answer for *_, answer in answers]

    @contextmanager
    def _noticing(self, what: str) -> Iterator[None]:
        """Turn the failure of a connection into an error that says what to do."""
        try:
            yield
        except RuntimeError as error:
            self._over = True
            reason = _WHERE.sub("", str(error)).partition("\n")[0].partition(". ")[0].rstrip(".")
            raise RankError(
                f"rank {self.rank} lost another rank at the step {what or 'end'!r} ({reason}). A "
                "process ended or hangs, or a machine cannot be reached: see what the other ranks "
                "say. Start all ranks again; with resume= (--resume), after the last finished "
                f"layer. Where a step takes longer than {_timeout():g} s, set {TIMEOUT}."
            ) from error


ALONE = Ranks()
_active: list[Ranks] = []


def active() -> Ranks:
    """Return the ranks of the :func:`shared_work` that this process is in; alone outside of it."""
    return _active[-1] if _active else ALONE


@contextmanager
def shared_work(share: bool = True) -> Iterator[Ranks]:
    """Share what is done in the block over the processes of the default group, if there is one.

    An error that leaves the block is told to the other ranks. Blocks inside use the same ranks.

    Raises:
        RankError: not all processes of the group come here.
        ConfigError: ranks have different versions of this package.
    """
    if _active or not share or process_count() == 1:
        yield active() if share else ALONE
        return
    rank, count = dist.get_rank(), process_count()
    ranks = Ranks(rank, count)
    with ranks._noticing("start, where every process of the group must call fewbits"):
        ranks._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=_timeout()))
    _active.append(ranks)
    try:
        ranks.compare("start", {"version of fewbits": version("fewbits")})
        yield ranks
    except Exception as error:
        ranks.fail(error)
        raise
    finally:
        _active.pop()
        with suppress(RuntimeError, ValueError):
            dist.destroy_process_group(ranks._group)


def deal(costs: Sequence[float], count: int) -> list[int]:
    """Return the rank of each piece of work: the dearest first, each to who has least to do."""
    loads, owners = [0.0] * count, [0] * len(costs)
    for place in sorted(range(len(costs)), key=lambda k: -costs[k]):
        owners[place] = loads.index(min(loads))
        loads[owners[place]] += costs[place]
    return owners


def _timeout() -> float:
    text = os.environ.get(TIMEOUT, str(_SECONDS))
    seconds = float(text) if text.replace(".", "", 1).isdigit() else None
    require(is_number(seconds) and seconds > 0, TIMEOUT, "a number of seconds > 0", text)
    return float(text)


def _error_of(rank: int, kind: str, text: str) -> FewbitsError:
    """Return the error of another rank."""
    known: object = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, FewbitsError) and known not in _OTHER:
        return known(f"rank {rank}: {text}")
    return RankError(f"rank {rank} failed: {kind}: {text}. Its own message says more.")


def _listed(ranks: Sequence[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


def _values(first: str, other: str | None) -> str:
    return f" {other!r}, rank 0 {first!r}"


def _compact(value: Any) -> Any:
    """Return a dataclass whose tensors are alone in their memory, all of which would be sent."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    held = {entry.name: getattr(value, entry.name) for entry in fields(value) if entry.init}
    tensors = {name: t for name, t in held.items() if isinstance(t, Tensor)}
    return replace(value, **{name: t.detach().cpu().clone() for name, t in tensors.items()})
