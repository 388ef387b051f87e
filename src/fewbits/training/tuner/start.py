"""What a training starts from: what of it the finished network keeps, and what is told if not.

Codes (grids, codebooks, bases), codebooks that tensors share, quantized inputs, zeros, absorbed
normalizations and 16-bit storage: what is not kept is a :class:`Change`, a warning when it is
foreseen and a note of the finished network.
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

__all__ = ["Change", "Inherited", "narrow_dtype", "tell"]

_LISTED = 4


@dataclass(frozen=True)
class Change:
    """Something of a start that the finished network does not have.

    Attributes:
        kind: what it is of: "codes", "floats", "levels", "inputs", "shared", "raw", "zeros",
            "norms", or "loaded": of a network that a file was loaded into before.
        text: one line for people.
        loss: whether it deserves a warning, not a note alone.
    """

    kind: str
    text: str
    loss: bool = True


@dataclass(frozen=True)
class Inherited:
    """The start of one training; of floats, without contents.

    Attributes:
        contents: of the compressed network; None where there is none.
        method: name of the method that trains.
        keeps: whether that trains each weight on the levels that it starts with.
        trained: names of the weights that it trains.
        norms: names of the normalizations that the network had absorbed or settled.
        foreseen: changes that were told when the training began.
    """

    contents: Contents | None = None
    method: str = ""
    keeps: bool = False
    trained: Collection[str] = ()
    norms: Sequence[str] = ()
    foreseen: tuple[Change, ...] = field(default=())

    @property
    def source(self) -> str:
        """How the network of the start is built; "" for not known."""
        known = None if self.contents is None else self.contents.metadata.get("source")
        return known if isinstance(known, str) else ""

    @property
    def codes(self) -> dict[str, CodedTensor]:
        """The quantized tensors of the start by name."""
        tensors = {} if self.contents is None else self.contents.tensors
        return {name: t for name, t in tensors.items() if not isinstance(t, RawTensor)}

    @property
    def grids(self) -> Mapping[str, ActivationGrid]:
        """The quantized inputs of the start by site."""
        return {} if self.contents is None else self.contents.activations

    def foresee(self, model: nn.Module, inputs: Collection[str], raw_dtype: str) -> list[Change]:
        """Return what the training will lose, as far as it is known before.

        Args:
            model: with the values of the start. What needs no gradient there keeps its codes.
            inputs: sites that the method itself quantizes.
            raw_dtype: of the recipe.
        """
        named = model.named_parameters(remove_duplicate=False)
        live = {name for name, parameter in named if parameter.requires_grad}
        codes, trained = self.codes, {self._own(name) for name in self.trained}
        floats = [n for n in codes if n not in trained and self._names(n) & live]
        anew = {} if self.keeps else {n: t for n, t in codes.items() if n in trained}
        found = [*_floats(floats), *self._levels(anew), *self._inputs(inputs)]
        narrow = narrow_dtype(self.contents)
        if narrow and raw_dtype == "keep":
            found.append(_wider(narrow))
        return found

    def changes(self, after: Contents, model: nn.Module) -> list[Change]:
        """Return what the finished network lacks of the start: of its contents, and its network."""
        if self.contents is None:
            return []
        pairs = {name: (t, _found(after, name)) for name, t in self.contents.tensors.items()}
        there = {name: (old, new) for name, (old, new) in pairs.items() if new is not None}
        codes = {n: (old, new) for n, (old, new) in there.items() if not isinstance(old, RawTensor)}
        floats = [name for name, (_, new) in codes.items() if isinstance(new, RawTensor)]
        coded = {n: pair for n, pair in codes.items() if n not in floats}
        anew = {n: old for n, (old, new) in coded.items() if not self._keeps(old, new)}
        wide = [old for old, new in there.values() if _is_wider(old, new)]
        norms = [name for name in self.norms if name not in without_statistics(model)]
        return [
            *_floats(floats),
            *(_quantized(there) if codes else []),
            *self._levels(anew),
            *self._inputs(after.activations),
            *_refitted(self.grids, after.activations),
            *_unshared(codes),
            *([_wider(_stored(wide[0]))] if wide else []),
            *_zeros(codes),
            *([_revived(norms)] if norms else []),
        ]

    def told(self, after: Contents, model: nn.Module) -> list[str]:
        """Return notes on :meth:`changes`, and warn of what was not foreseen."""
        found = self.changes(after, model)
        known = {change.kind for change in self.foreseen}
        tell([change for change in found if change.kind not in known], stacklevel=3)
        loaded = [change for change in self.foreseen if change.kind == "loaded"]
        return [f"start: {change.text}" for change in (*loaded, *found)]

    def unchanged(self, after: Contents, state: Mapping[str, Tensor]) -> Contents:
        """Return the contents with the start's codes of what ``state`` has with the same values."""
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
        """Tell whether codes are on the start's levels, which a method that keeps them may move."""
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
                f"{self.method} puts {_counted(names, 'tensor')} on levels of its own, and gives "
                f"up the {kind} that the start has",
                loss=kind != "grid",  # to fit a grid is what such a method is for
            )
            for kind, names in by_kind.items()
        ]

    def _inputs(self, sites: Collection[str]) -> list[Change]:
        lost = [site for site in self.grids if site not in sites]
        if not lost:
            return []
        told = f"{_counted(lost, 'quantized input')} of the start {_are(lost)} in float from now on"
        return [Change("inputs", f"{told}; fewbits.LowBit trains quantized ones")]


def tell(changes: Iterable[Change], stacklevel: int) -> None:
    """Warn of what is lost, in one warning."""
    lost = [change.text for change in changes if change.loss]
    if lost:
        text = "; ".join(lost)
        warnings.warn(f"not kept: {text}.", LossWarning, stacklevel=stacklevel + 1)


def narrow_dtype(contents: Contents | None) -> str:
    """Return the 16-bit dtype in which floats of the start are stored; "" for none, or several."""
    tensors = [] if contents is None else list(contents.tensors.values())
    found = {t.stored for t in tensors if isinstance(t, RawTensor) and t.stored != t.dtype}
    return found.pop() if len(found) == 1 else ""


def _found(after: Contents, name: str) -> CodedTensor | None:
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
    told = f"{_counted(names, 'tensor')} that the start has in codes {_are(names)} in float"
    return [Change("codes", f"{told} from now on")]


def _quantized(there: Mapping[str, tuple[CodedTensor, CodedTensor]]) -> list[Change]:
    """Return the change where weights that the start left in float, beside codes, have codes."""
    names = [
        name
        for name, (old, new) in there.items()
        if isinstance(old, RawTensor) and not isinstance(new, RawTensor) and len(old.shape) > 1
    ]
    if not names:
        return []
    told = f"{_counted(names, 'tensor')} that the start has in float {_are(names)} quantized"
    return [Change("floats", f"{told} from now on; keep= leaves them in float", loss=False)]


def _refitted(
    before: Mapping[str, ActivationGrid], after: Mapping[str, ActivationGrid]
) -> list[Change]:
    anew = [site for site, grid in before.items() if site in after and after[site] != grid]
    text = f"the grids of {_counted(anew, 'quantized input')} are fitted anew"
    return [Change("inputs", text, loss=False)] if anew else []


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


def _wider(narrow: str) -> Change:
    text = f"floats that the start stores in {narrow} are stored in more bits"
    return Change("raw", f"{text}; raw_dtype={narrow!r} keeps them")


def _zeros(codes: Mapping[str, tuple[CodedTensor, CodedTensor]]) -> list[Change]:
    """Return the change where weights have fewer zeros; places may have been sorted."""
    before = after = 0
    for old, new in codes.values():
        was, now = (int((to_torch(tensor) == 0).sum()) for tensor in (old, new))
        before, after = before + was, after + min(was, now)
    if after == before:
        return []
    told = f"{before - after:,} of {before:,} zeros of the start have values"
    return [Change("zeros", f"{told}; zeros=True keeps them", loss=2 * after < before)]


def _revived(names: Sequence[str]) -> Change:
    told = f"{_counted(names, 'normalization')} that the start had absorbed"
    return Change("norms", f"{told} {_are(names, 'has', 'have')} statistics again", loss=False)


def _sharing(tensors: Mapping[str, CodedTensor]) -> dict[str, CodedTensor]:
    """Return the tensors, equal codebooks made one."""
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
