"""A network that was compressed as its difference from another one, at a rate."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn

from ...coded import CodedTensor, Contents, JSONValue, TensorFacts, recognised
from ...engine.layers.layer import Sensitivity
from ...engine.layers.pack import pack_raw
from ...engine.layers.targets import Target
from ...errors import ConfigError
from ...recipe.plan import Plan
from ..result import CompressionResult
from ..storage.finished_tensors import FileTensors, FinishedWeights
from .delta import Division, exactly, free, result_of
from .loading import fill
from .states import Base, fingerprint_of, owned, read_base, same

__all__ = ["DeltaBase", "DeltaResult"]


@dataclass(frozen=True, eq=False)
class DeltaBase:
    """The old weights, each once.

    Attributes:
        tensors: by name.
        fingerprint: of all of them.
    """

    tensors: Mapping[str, Tensor]
    fingerprint: str

    @classmethod
    def of(cls, base: Base) -> DeltaBase:
        """Read the base; see :func:`fewbits.encode_delta` for what it may be."""
        old, _ = owned(read_base(base), "base")
        return cls(old, fingerprint_of(old))

    def of_weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return those that weights of a network can be told as differences from."""
        found = {}
        for name, weight in model.named_parameters():
            old = self.tensors.get(name)
            if old is not None and (old.shape, old.dtype) == (weight.shape, weight.dtype):
                found[name] = old.detach().to(weight.device)
        return found

    def planned(self, plan: Plan, model: nn.Module) -> Plan:
        """Return the plan in which weights that did not change are left as they are."""
        for entry in plan.entries:
            name = entry.target.name
            if entry.method and same(model.get_parameter(name), self.tensors.get(name)):
                plan = plan.changed(name, None, "it is that of the base")
        return plan

    def energy(
        self, model: nn.Module, targets: Iterable[Target], known: Mapping[str, Sensitivity]
    ) -> float:
        """Return by how much the output would change if no difference were told, about.

        Of all weights whose sensitivity is known, as if none made up for another.
        """
        bases, total = self.of_weights(model), 0.0
        for target in targets:
            if target.name in bases and target.name in known:
                sensitivity, view = known[target.name], target.view
                weight = view.matrix(model.get_parameter(target.name).detach()).double()
                change = weight - view.matrix(bases[target.name]).double()
                moved = ((change @ sensitivity.columns.to(change)) * change).sum(2)
                total += float((moved * sensitivity.rows.to(change)).sum())
        return total

    def result(
        self,
        state: Mapping[str, Tensor],
        finished: FinishedWeights,
        *,
        bases: Container[str],
        metadata: Mapping[str, JSONValue],
        keep: object,
        plan: Plan,
        **about: Any,
    ) -> DeltaResult:
        """Return quantized differences, and the exact ones of all else.

        See :class:`BaseWeights`.
        """
        old, aliases = self.tensors, plan.aliases
        rest = {n: t for n, t in state.items() if n not in finished and n not in aliases}
        division = Division.of(rest, old)
        coded = [name for name in state if name in finished and name not in aliases]
        added = [name for name in coded if name in bases]
        whole = [name for name in coded if name not in bases]
        taken = {*division.differing, *division.whole, *added, *whole}
        made: dict[str, CodedTensor] = {}
        for name in division.differing:
            made[name], made[free(f"{name}.rest", taken)] = exactly(rest[name], old[name])
        exact = {name: recognised(pack_raw(rest[name])) for name in division.whole}
        names = [*made, *added, *exact, *whole]
        made |= exact
        stored = {alias: name for alias, name in aliases.items() if name in taken}
        kept = {alias: name for alias, name in aliases.items() if name not in taken}
        removed = [name for name in old if name not in state or name in aliases]
        facts = division.facts(old, removed, kept, len(added))
        tensors = FileTensors(
            names,
            finished,
            {name: _given(tensor) for name, tensor in made.items()},
            {name: TensorFacts.of(tensor) for name, tensor in made.items()},
            keep,
        )
        told = {**metadata, "delta": facts}
        contents = Contents(tensors, stored, metadata=told, is_delta=True)
        return DeltaResult(contents=contents, plan=plan, base=self, **about)


def _given(tensor: CodedTensor) -> Callable[[], CodedTensor]:
    return lambda: tensor


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class DeltaResult(CompressionResult):
    """The changes from other weights, some of them quantized; its file is a delta.

    ``tensors`` are the parts of that file. Encode, save and measure it as any other result;
    ``state_dict`` and ``load_into`` add it to its base, which whoever reads the file must have.

    Attributes:
        base: the weights that it changes.
    """

    _hint: ClassVar[str] = "print(coded.plan) lists every tensor"

    base: DeltaBase

    @property
    def summary(self) -> str:
        """Bytes of the file, and how many there are of the network."""
        size = self.size_report().file_bytes
        whole = sum(t.nbytes for t in self.base.tensors.values())
        return f"{size:,} bytes, {size / max(1, whole):.2%} of the weights, as changes of a base"

    @torch.inference_mode(False)
    def state_dict(self) -> dict[str, Tensor]:
        """Return the base with the changes, under every name, including tied ones."""
        contents = self.contents
        facts = (contents.aliases, contents.metadata, self.base.tensors)
        return result_of(contents.tensors, *facts)

    def load_into(self, model: nn.Module) -> nn.Module:
        """Load the base with the changes into ``model`` and return it."""
        return fill(model, self.state_dict(), "the delta on its base")

    def warn_low_coverage(self, stacklevel: int = 1) -> None:
        """Do nothing: what is not quantized is exact, and costs what changed."""

    def save_pretrained(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: a delta is no network without its base."""
        raise ConfigError(
            "a delta is no network without its base. Save it with save(), and load it with "
            "fewbits.load(path, base=...); or compress the network without base=."
        )

    def __repr__(self) -> str:
        what = self.summary if self._reports else "not encoded yet"
        return f"<DeltaResult of {len(self.tensors)} parts: {what}>\n{self._hint}"
