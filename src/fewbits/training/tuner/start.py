"""Compare a finished network with the compressed network that training started from.

Codes (grids, codebooks, bases), shared codebooks, quantized inputs, zeros, absorbed BatchNorm
layers and 16-bit storage may be lost. Each loss is a :class:`Change`: a warning as soon as it can
be expected, and a note of the finished network.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from ...coded import (
    FLOAT_DTYPES,
    ActivationGrid,
    Codebook,
    CodebookTensor,
    CodedTensor,
    Contents,
    GridTensor,
    RawTensor,
    TransformTensor,
)
from ...engine.batchnorm.freeze import without_statistics
from ...engine.layers.pack import to_torch
from ...errors import LossWarning

__all__ = ["Change", "Inherited", "stored_dtype", "warn_of_losses"]

_LISTED = 4


@dataclass(frozen=True)
class Change:
    """A property of the start that the finished network does not have.

    Attributes:
        kind: what has changed: "codes", "floats", "levels", "inputs", "shared", "raw", "zeros",
            "norms", or "loaded" (quantized inputs of a file that was loaded before).
        text: one line for people.
        loss: whether it deserves a warning, and not only a note.
    """

    kind: str
    text: str
    loss: bool = True


@dataclass(frozen=True)
class Inherited:
    """The start of a training; without contents if it starts from a float network.

    Attributes:
        contents: contents of the compressed network; None for a float network.
        method: name of the training method.
        keeps: whether the method keeps the levels of each weight.
        trained: names of the weights that it trains.
        norms: names of the BatchNorm layers that were already absorbed or merged.
        expected: changes that were already reported when training began.
    """

    contents: Contents | None = None
    method: str = ""
    keeps: bool = False
    trained: Collection[str] = ()
    norms: Sequence[str] = ()
    expected: tuple[Change, ...] = field(default=())

    @property
    def source(self) -> str:
        """How to build the network, as stored in the start; "" if unknown."""
        source = None if self.contents is None else self.contents.metadata.get("source")
        return source if isinstance(source, str) else ""

    @property
    def codes(self) -> dict[str, CodedTensor]:
        """The quantized tensors of the start, by name."""
        tensors = {} if self.contents is None else self.contents.tensors
        return {name: t for name, t in tensors.items() if not isinstance(t, RawTensor)}

    @property
    def grids(self) -> Mapping[str, ActivationGrid]:
        """The quantized inputs of the start, by site."""
        return {} if self.contents is None else self.contents.activations

    def expected_changes(
        self, model: nn.Module, inputs: Collection[str], raw_dtype: str
    ) -> list[Change]:
        """Return the changes that training will make, as far as they are known in advance.

        Args:
            model: the network with the values of the start. Parameters that need no gradient keep
                their codes.
            inputs: sites that the method itself quantizes.
            raw_dtype: the setting of the recipe.
        """
        named = model.named_parameters(remove_duplicate=False)
        live = {name for name, parameter in named if parameter.requires_grad}
        codes, trained = self.codes, {self._own(name) for name in self.trained}
        floats = [n for n in codes if n not in trained and self._names(n) & live]
        requantized = {} if self.keeps else {n: t for n, t in codes.items() if n in trained}
        changes = [*_floats(floats), *self._levels(requantized), *self._inputs(inputs)]
        dtype = stored_dtype(self.contents)
        if dtype and raw_dtype == "keep":
            changes.append(_wider(dtype))
        return changes

    def changes(self, after: Contents, model: nn.Module) -> list[Change]:
        """Return the changes of the finished network with respect to the start."""
        if self.contents is None:
            return []
        pairs = {name: (t, _tensor(after, name)) for name, t in self.contents.tensors.items()}
        both = {name: (old, new) for name, (old, new) in pairs.items() if new is not None}
        codes = {n: (old, new) for n, (old, new) in both.items() if not isinstance(old, RawTensor)}
        floats = [name for name, (_, new) in codes.items() if isinstance(new, RawTensor)]
        coded = {n: pair for n, pair in codes.items() if n not in floats}
        requantized = {n: old for n, (old, new) in coded.items() if not self._keeps(old, new)}
        wide = [old for old, new in both.values() if _is_wider(old, new)]
        norms = [name for name in self.norms if name not in without_statistics(model)]
        return [
            *_floats(floats),
            *(_quantized(both) if codes else []),
            *self._levels(requantized),
            *self._inputs(after.activations),
            *_refitted(self.grids, after.activations),
            *_unshared(codes),
            *([_wider(_stored(wide[0]))] if wide else []),
            *_zeros(codes),
            *([_revived(norms)] if norms else []),
        ]

    def report(self, after: Contents, model: nn.Module) -> list[str]:
        """Return notes on :meth:`changes`, and warn about those that were not expected."""
        changes = self.changes(after, model)
        known = {change.kind for change in self.expected}
        warn_of_losses([change for change in changes if change.kind not in known], stacklevel=3)
        loaded = [change for change in self.expected if change.kind == "loaded"]
        return [f"start: {change.text}" for change in (*loaded, *changes)]

    def unchanged(self, after: Contents, state: Mapping[str, Tensor]) -> Contents:
        """Return the contents with the start's codes for tensors whose values have not changed."""
        kept = {}
        for name, old in self.codes.items():
            own = after.aliases.get(name, name)
            new = after.tensors.get(own)
            if isinstance(new, RawTensor) and new.dtype == old.dtype:
                values = to_torch(old)
                kept.update({own: old} if torch.equal(values, state[own].to(values.device)) else {})
        if not kept:
            return after
        return replace(after, tensors=_sharing({**after.tensors, **kept}))

    def _keeps(self, old: CodedTensor, new: CodedTensor) -> bool:
        """Return whether codes use the levels of the start (which the method may have trained)."""
        return type(old) is type(new) and (self.keeps or _same_levels(old, new))

    def _own(self, name: str) -> str:
        return name if self.contents is None else self.contents.aliases.get(name, name)

    def _names(self, name: str) -> set[str]:
        aliases = {} if self.contents is None else self.contents.aliases
        return {name, *(alias for alias, own in aliases.items() if own == name)}

    def _levels(self, tensors: Mapping[str, CodedTensor]) -> list[Change]:
        by_kind: dict[str, list[str]] = defaultdict(list)
        for name, tensor in tensors.items():
            by_kind[_kind(tensor)].append(name)
        return [
            Change(
                "levels",
                f"{self.method} quantizes {_counted(names, 'tensor')} to levels of its own and "
                f"drops the {kind} of the start",
                loss=kind != "grid",  # fitting a grid is the purpose of such a method
            )
            for kind, names in by_kind.items()
        ]

    def _inputs(self, sites: Collection[str]) -> list[Change]:
        lost = [site for site in self.grids if site not in sites]
        if not lost:
            return []
        text = f"{_counted(lost, 'quantized input')} of the start {_are(lost)} in float from now on"
        return [Change("inputs", f"{text}; fewbits.LowBit trains quantized ones")]


def warn_of_losses(changes: Iterable[Change], stacklevel: int) -> None:
    """Warn about all losses in one warning."""
    lost = [change.text for change in changes if change.loss]
    if lost:
        text = "; ".join(lost)
        warnings.warn(f"not kept: {text}.", LossWarning, stacklevel=stacklevel + 1)


def stored_dtype(contents: Contents | None) -> str:
    """Return the 16-bit dtype in which the start stores floats; "" if there is not exactly one."""
    tensors = [] if contents is None else list(contents.tensors.values())
    dtypes = {t.stored for t in tensors if isinstance(t, RawTensor) and t.stored != t.dtype}
    return dtypes.pop() if len(dtypes) == 1 else ""


def _tensor(after: Contents, name: str) -> CodedTensor | None:
    return after.tensors.get(after.aliases.get(name, name))


def _kind(tensor: CodedTensor) -> str:
    if isinstance(tensor, TransformTensor):
        return "transform"
    return "codebook" if isinstance(tensor, CodebookTensor) else "grid"


def _same_levels(old: CodedTensor, new: CodedTensor) -> bool:
    if isinstance(old, GridTensor) and isinstance(new, GridTensor):
        return np.array_equal(old.step, new.step) and np.array_equal(old.offset, new.offset)
    if isinstance(old, CodebookTensor) and isinstance(new, CodebookTensor):
        same = np.array_equal(old.codebook.values, new.codebook.values)
        return same and np.array_equal(old.scale, new.scale)
    return old is new


def _stored(tensor: CodedTensor) -> str:
    return tensor.stored if isinstance(tensor, RawTensor) else tensor.dtype


def _is_wider(old: CodedTensor, new: CodedTensor) -> bool:
    if not (isinstance(old, RawTensor) and isinstance(new, RawTensor)):
        return False
    before, now = FLOAT_DTYPES.get(old.stored, 0), FLOAT_DTYPES.get(new.stored, 0)
    return bool(before and now > before)


def _floats(names: Sequence[str]) -> list[Change]:
    if not names:
        return []
    text = f"{_counted(names, 'tensor')} quantized in the start {_are(names)} in float"
    return [Change("codes", f"{text} from now on")]


def _quantized(both: Mapping[str, tuple[CodedTensor, CodedTensor]]) -> list[Change]:
    """Return the change if weights that the start left in float are now quantized."""
    names = [
        name
        for name, (old, new) in both.items()
        if isinstance(old, RawTensor) and not isinstance(new, RawTensor) and len(old.shape) > 1
    ]
    if not names:
        return []
    text = f"{_counted(names, 'tensor')} that the start has in float {_are(names)} quantized"
    return [Change("floats", f"{text} from now on; keep= leaves them in float", loss=False)]


def _refitted(
    before: Mapping[str, ActivationGrid], after: Mapping[str, ActivationGrid]
) -> list[Change]:
    sites = [site for site, grid in before.items() if site in after and after[site] != grid]
    text = f"the grids of {_counted(sites, 'quantized input')} are refitted"
    return [Change("inputs", text, loss=False)] if sites else []


def _unshared(codes: Mapping[str, tuple[CodedTensor, CodedTensor]]) -> list[Change]:
    groups: dict[int, list[CodebookTensor]] = defaultdict(list)
    for old, new in codes.values():
        if isinstance(old, CodebookTensor) and isinstance(new, CodebookTensor):
            groups[id(old.codebook)].append(new)
    return [
        Change("shared", f"a codebook that {len(group)} tensors share has become {count}")
        for group in groups.values()
        if (count := len({tensor.codebook.values.tobytes() for tensor in group})) > 1
    ]


def _wider(dtype: str) -> Change:
    text = f"floats that the start stores in {dtype} are stored in more bits"
    return Change("raw", f"{text}; raw_dtype={dtype!r} keeps them")


def _zeros(codes: Mapping[str, tuple[CodedTensor, CodedTensor]]) -> list[Change]:
    """Return the change if weights have fewer zeros; positions may have been sorted."""
    before = after = 0
    for old, new in codes.values():
        was, now = (int((to_torch(tensor) == 0).sum()) for tensor in (old, new))
        before, after = before + was, after + min(was, now)
    if after == before:
        return []
    text = f"{before - after:,} of {before:,} zeros of the start have values"
    return [Change("zeros", f"{text}; zeros=True keeps them", loss=2 * after < before)]


def _revived(names: Sequence[str]) -> Change:
    text = f"{_counted(names, 'BatchNorm layer')} that the start had absorbed"
    return Change("norms", f"{text} {_are(names, 'has', 'have')} statistics again", loss=False)


def _sharing(tensors: Mapping[str, CodedTensor]) -> dict[str, CodedTensor]:
    """Return the tensors with equal codebooks merged."""
    books: dict[bytes, Codebook] = {}
    return {
        name: replace(t, codebook=books.setdefault(t.codebook.values.tobytes(), t.codebook))
        if isinstance(t, CodebookTensor)
        else t
        for name, t in tensors.items()
    }


def _counted(names: Sequence[str], what: str) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{len(names)} {what}{'s' * (len(names) > 1)} ({', '.join(names[:_LISTED])}{more})"


def _are(names: Sequence[str], one: str = "is", many: str = "are") -> str:
    return one if len(names) == 1 else many
