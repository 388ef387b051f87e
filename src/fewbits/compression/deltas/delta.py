"""Write and apply deltas: what changed from one state dict to another."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...coded import (
    FLOAT_DTYPES,
    CodedTensor,
    GridTensor,
    JSONValue,
    RawTensor,
    recognised,
)
from ...container import FileWriter, open_delta
from ...engine.layers.pack import pack_raw, restored, to_torch
from ...errors import ConfigError, CorruptFileError, require
from .differences import applied, differences, has_differences, matrix_of
from .states import Base, bytes_of, dtype_of, fingerprint_of, owned, read_base, same

__all__ = ["Division", "apply_delta", "encode_delta", "exactly", "free", "result_of"]

_SPARE = 8  # decoded bytes, and units of work, for each value of the base
_FACTS = {"base", "differences", "removed", "aliases"}


@dataclass(frozen=True)
class Division:
    """The tensors of a state dict by how a delta tells them; those not here did not change.

    Attributes:
        differing: told as differences, exactly.
        whole: stored whole.
    """

    differing: list[str]
    whole: list[str]

    @classmethod
    def of(cls, new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> Division:
        """Divide tensors that are told exactly."""
        changed = [name for name, tensor in new.items() if not same(tensor, old.get(name))]
        differing = [name for name in changed if _differs(new[name], old.get(name))]
        return cls(differing, [name for name in changed if name not in set(differing)])

    def facts(
        self,
        old: Mapping[str, Tensor],
        removed: list[str],
        aliases: Mapping[str, str],
        added: int = 0,
    ) -> dict[str, JSONValue]:
        """Return what the metadata says; ``aliases`` are those of tensors that did not change."""
        facts: dict[str, JSONValue] = {
            "base": fingerprint_of(old),
            "differences": len(self.differing),
            "removed": [*removed],
            "aliases": dict(aliases),
        }
        return {**facts, "added": added} if added else facts


def encode_delta(
    state: Mapping[str, Tensor] | nn.Module,
    base: Base,
    *,
    effort: str = "fast",
    threads: int = 0,
) -> bytes:
    """Return the changes from ``base`` to ``state``, exactly and in few bytes.

    Tensors of the same name, shape and dtype are stored as differences between the integers that
    their bits stand for; tensors that did not change take nothing. All others of ``state`` are
    stored whole, exactly too. Names that only ``base`` has are removed.

    Args:
        state: the new weights: a state dict, or a network.
        base: the old ones, which whoever reads the delta must have: a state dict, a network, or the
            path of a ``.fewbits`` file, a checkpoint or a folder with one.
        effort: "fast", "balanced" or "smallest", as in :meth:`CodedModel.encode`; others than
            "fast" also take longer to apply.
        threads: threads that encode; 0 means one per core. The bytes do not depend on it.

    Returns:
        The bytes of a file that :func:`apply_delta` reads, and :func:`fewbits.load` with ``base=``.

    Raises:
        ConfigError: values that are not tensors, or an unknown effort.
        SourceError: ``base`` is a path that cannot be read.
    """
    new, aliases = owned(state, "state")
    old, _ = owned(read_base(base), "base")
    division, file = Division.of(new, old), io.BytesIO()
    taken = {*division.differing, *division.whole}
    with FileWriter(file, effort, threads, delta=True) as writer:
        for name in division.differing:
            classes, rest = exactly(new[name], old[name])
            writer.add(name, classes)
            writer.add(free(f"{name}.rest", taken), rest)
        for name in division.whole:
            writer.add(name, recognised(pack_raw(new[name])))
        # Other names of a tensor that is not in the file are told in the metadata.
        stored = {alias: name for alias, name in aliases.items() if name in taken}
        kept = {alias: name for alias, name in aliases.items() if alias not in stored}
        removed = [name for name in old if name not in new]
        writer.finish(stored, {}, {"delta": division.facts(old, removed, kept)})
    return file.getvalue()


def apply_delta(
    data: bytes, base: Base, *, max_decoded_bytes: int | None = None, threads: int = 0
) -> dict[str, Tensor]:
    """Return the state dict that :func:`encode_delta` was given, bit for bit.

    Tensors that did not change are those of ``base``, not copies of them; all others are new, on
    the CPU. Names come in the order of ``base``, then those that are new.

    Args:
        data: what :func:`encode_delta` returned.
        base: the same old weights.
        max_decoded_bytes: refuse data that decodes to more; None allows 64 MiB, 256 times the
            length of ``data``, and 8 bytes for each value of ``base``.
        threads: threads that decode; 0 means one per core.

    Raises:
        ConfigError: ``base`` has other weights than those that the delta was made from.
        CorruptFileError: ``data`` is damaged, or no delta.
        SourceError: ``base`` is a path that cannot be read.
    """
    require(isinstance(data, bytes), "data", "the bytes of a delta", data)
    old, _ = owned(read_base(base), "base")
    spare = _SPARE * sum(tensor.numel() for tensor in old.values())
    with open_delta(data, max_decoded_bytes, spare, threads) as (tensors, aliases, metadata):
        return result_of(tensors, aliases, metadata, old)


def result_of(
    tensors: Mapping[str, CodedTensor],
    aliases: Mapping[str, str],
    metadata: Mapping[str, JSONValue],
    old: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return the state dict that the parts of a delta make of the base; see :func:`apply_delta`.

    ``old`` has each tensor once.
    """
    facts, kept = _checked(metadata, tensors)
    found = fingerprint_of(old)
    if found != facts["base"]:
        raise ConfigError(
            f"base has other weights (fingerprint {found}) than those from which the delta was "
            f"made ({facts['base']}). Pass the very state dict, file or folder that was the "
            "base when it was written."
        )
    removed = set(facts["removed"])
    state = {name: tensor for name, tensor in old.items() if name not in removed}
    names, count = list(tensors), 2 * facts["differences"]
    for name, rest in zip(names[:count:2], names[1:count:2], strict=True):
        state[name] = _differing(name, tensors[name], tensors[rest], old)
    end = count + facts.get("added", 0)
    for name in names[count:end]:
        state[name] = _sum(name, tensors[name], old.get(name))
    for name in names[end:]:
        state[name] = to_torch(tensors[name])
    for alias, name in {**aliases, **kept}.items():
        if name not in state or alias in state:
            raise CorruptFileError(f"the delta ties {alias!r} to {name!r}, which cannot be")
        state[alias] = state[name]
    return state


def _differs(new: Tensor, old: Tensor | None) -> bool:
    """Return whether a tensor that changed is stored as differences."""
    if old is None or new.shape != old.shape or new.dtype != old.dtype:
        return False
    return has_differences(dtype_of(new))


def exactly(new: Tensor, old: Tensor) -> tuple[GridTensor, RawTensor]:
    """Return the differences between two tensors that both have them."""
    return differences(bytes_of(new), bytes_of(old), dtype_of(new))


def _sum(name: str, coded: CodedTensor, before: Tensor | None) -> Tensor:
    """Return the tensor that a difference of values makes of the old one."""
    plain = not isinstance(coded, RawTensor) and coded.dtype == "float32"
    if before is None or not plain or tuple(coded.shape) != tuple(before.shape):
        raise CorruptFileError(f"the delta adds to {name!r}, which does not fit the base")
    if dtype_of(before) not in FLOAT_DTYPES:
        raise CorruptFileError(f"the delta adds to {name!r}, which is {dtype_of(before)}")
    return restored(before.detach().cpu(), to_torch(coded))


def _differing(
    name: str, coded: CodedTensor, rest: CodedTensor, old: Mapping[str, Tensor]
) -> Tensor:
    """Return the tensor that differences make of the old one."""
    before = old.get(name)
    if before is None or not has_differences(dtype_of(before)):
        raise CorruptFileError(f"the delta has differences of {name!r}, which the base has not")
    index, data = _index(coded), _rest(rest)
    if index is None or data is None or index.shape != matrix_of(before.numel()):
        raise CorruptFileError(
            f"the differences of {name!r} do not fit its {before.numel()} values"
        )
    try:
        data = applied(index, data.tobytes(), bytes_of(before), dtype_of(before))
    except CorruptFileError as error:
        raise CorruptFileError(f"the differences of {name!r} are damaged: {error}") from error
    if before.dtype == torch.bool and data.max(initial=0) > 1:
        raise CorruptFileError(f"the bool tensor {name!r} has values other than 0 and 1")
    return torch.from_numpy(data).view(before.dtype).reshape(before.shape)


def _index(coded: CodedTensor) -> NDArray[np.int32] | None:
    """Return the index of a plain grid, whose values it is; None for any other tensor."""
    if not isinstance(coded, GridTensor) or coded.layout is not None:
        return None
    plain = coded.step.tolist() == [1.0] and coded.offset.tolist() == [0.0]
    return coded.index if plain else None


def _rest(coded: CodedTensor) -> NDArray[np.uint8] | None:
    return coded.data if isinstance(coded, RawTensor) and coded.dtype == "uint8" else None


def free(name: str, taken: Collection[str]) -> str:
    """Return a name like this one that is not taken."""
    while name in taken:
        name += "."
    return name


def _checked(
    metadata: Mapping[str, JSONValue], tensors: Mapping[str, CodedTensor]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the facts of a delta and the names tied to what did not change, all checked."""
    facts = metadata.get("delta")
    if not isinstance(facts, dict) or not _FACTS <= set(facts) <= {*_FACTS, "added"}:
        raise CorruptFileError("the metadata of the delta does not say what it is")
    counts, kept = (facts["differences"], facts.get("added", 0)), facts["aliases"]
    sound = isinstance(facts["base"], str) and _are_texts(facts["removed"])
    sound = sound and all(type(count) is int and count >= 0 for count in counts)
    sound = sound and 2 * counts[0] + counts[1] <= len(tensors)  # type: ignore[operator]
    if not sound or not isinstance(kept, dict) or not _are_texts(kept.values()):
        raise CorruptFileError("the metadata of the delta is malformed")
    return facts, kept  # type: ignore[return-value]


def _are_texts(values: object) -> bool:
    return isinstance(values, Iterable) and all(isinstance(value, str) for value in values)
