"""Write and apply deltas: the exact changes from one state dict to another."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...coded import CodedTensor, GridTensor, JSONValue, RawTensor, recognised
from ...container import DELTA_MAGIC, FileWriter, LazyTensors, open_delta
from ...container.frame import MAGIC
from ...engine.layers.pack import pack_raw, to_torch
from ...errors import ConfigError, CorruptFileError, require
from ...sources.checkpoints.state_dicts import read_state_dict as read_weights
from ..load import read_state_dict
from .differences import applied, differences, has_differences, matrix_of

__all__ = ["Base", "apply_delta", "encode_delta", "read_base"]

Base: TypeAlias = "Mapping[str, Tensor] | nn.Module | str | PathLike[str]"
_SPARE = 8  # decoded bytes, and units of work, for each value of the base
_FACTS = {"base", "differences", "removed"}


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
    new, aliases = _owned(state, "state")
    old, _ = _owned(read_base(base), "base")
    changed = [name for name, tensor in new.items() if not _same(tensor, old.get(name))]
    differing = [name for name in changed if _differs(new[name], old.get(name))]
    whole = [name for name in changed if name not in set(differing)]
    facts: dict[str, JSONValue] = {
        "base": fingerprint_of(old),
        "differences": len(differing),
        "removed": [name for name in old if name not in new],
    }
    file = io.BytesIO()
    with FileWriter(file, effort, threads) as writer:
        for name in differing:
            dtype = _dtype(new[name])
            classes, rest = differences(_bytes(new[name]), _bytes(old[name]), dtype)
            writer.add(name, classes)
            writer.add(_free(f"{name}.rest", {*differing, *whole}), rest)
        for name in whole:
            writer.add(name, recognised(pack_raw(new[name])))
        # Other names of a tensor that is not in the file are told in the metadata.
        stored = {alias: name for alias, name in aliases.items() if name in set(changed)}
        kept = {alias: name for alias, name in aliases.items() if alias not in stored}
        writer.finish(stored, {}, {"delta": {**facts, "aliases": dict(kept)}})
    return DELTA_MAGIC + file.getvalue()[len(MAGIC) :]


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
    old, _ = _owned(read_base(base), "base")
    spare = _SPARE * sum(tensor.numel() for tensor in old.values())
    with open_delta(data, max_decoded_bytes, spare, threads) as (tensors, aliases, metadata):
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
            state[name] = _changed(name, tensors[name], tensors[rest], old)
        for name in names[count:]:
            state[name] = to_torch(tensors[name])
    for alias, name in {**aliases, **kept}.items():
        if name not in state or alias in state:
            raise CorruptFileError(f"the delta ties {alias!r} to {name!r}, which cannot be")
        state[alias] = state[name]
    return state


def read_base(base: Base) -> Mapping[str, Tensor]:
    """Return the state dict that ``base`` is, or that the file or folder has which it names."""
    if isinstance(base, nn.Module):
        own: dict[str, Tensor] = base.state_dict()
        return own
    if isinstance(base, Mapping):
        return base
    require(isinstance(base, str | PathLike), "base", "a state dict, a network or a path", base)
    path = Path(fspath(base))
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(MAGIC)) == MAGIC:
                return read_state_dict(path, None, 0, transform_domain=False)
    return read_weights(path)


def fingerprint_of(state: Mapping[str, Tensor]) -> str:
    """Return 32 hexadecimal digits of the names, dtypes, shapes and bits of all tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name]
        facts = f"{len(name)} {name} {_dtype(tensor)} {list(tensor.shape)}"
        digest.update(facts.encode("utf-8", "surrogatepass"))
        digest.update(_bytes(tensor).data)
    return digest.hexdigest()[:32]


def _owned(
    state: Mapping[str, Tensor] | nn.Module, what: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return each tensor once, and the other names of tied ones with the first name of each."""
    listed = state.state_dict() if isinstance(state, nn.Module) else state
    require(isinstance(listed, Mapping), what, "a state dict or a network", listed)
    owners: dict[Any, str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name, tensor in listed.items():
        require(isinstance(name, str), f"a name in {what}", "a string", name)
        sound = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        require(sound, f"{what}[{name!r}]", "a dense tensor", type(tensor).__name__)
        require(not tensor.is_meta, f"{what}[{name!r}]", "a tensor with values", "one on meta")
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        first = owners.setdefault(place, name) if tensor.numel() else name
        if first == name:
            tensors[name] = tensor
        else:
            aliases[name] = first
    return tensors, aliases


def _same(new: Tensor, old: Tensor | None) -> bool:
    """Return whether nothing changed, to the bit."""
    if old is None or new.shape != old.shape or new.dtype != old.dtype:
        return False
    return bool(np.array_equal(_bytes(new), _bytes(old)))


def _differs(new: Tensor, old: Tensor | None) -> bool:
    """Return whether a tensor that changed is stored as differences."""
    if old is None or new.shape != old.shape or new.dtype != old.dtype:
        return False
    return has_differences(_dtype(new))


def _changed(name: str, coded: CodedTensor, rest: CodedTensor, old: Mapping[str, Tensor]) -> Tensor:
    """Return the tensor that differences make of the old one."""
    before = old.get(name)
    if before is None or not has_differences(_dtype(before)):
        raise CorruptFileError(f"the delta has differences of {name!r}, which the base has not")
    index, data = _index(coded), _rest(rest)
    if index is None or data is None or index.shape != matrix_of(before.numel()):
        raise CorruptFileError(
            f"the differences of {name!r} do not fit its {before.numel()} values"
        )
    try:
        data = applied(index, data.tobytes(), _bytes(before), _dtype(before))
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


def _free(name: str, taken: Collection[str]) -> str:
    """Return a name like this one that is not taken."""
    while name in taken:
        name += "."
    return name


def _checked(
    metadata: Mapping[str, JSONValue], tensors: LazyTensors
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the facts of a delta and the names tied to what did not change, all checked."""
    facts = metadata.get("delta")
    if not isinstance(facts, dict) or set(facts) != {*_FACTS, "aliases"}:
        raise CorruptFileError("the metadata of the delta does not say what it is")
    count, kept = facts["differences"], facts["aliases"]
    sound = isinstance(facts["base"], str) and _are_texts(facts["removed"])
    sound = sound and type(count) is int and 0 <= 2 * count <= len(tensors)
    if not sound or not isinstance(kept, dict) or not _are_texts(kept.values()):
        raise CorruptFileError("the metadata of the delta is malformed")
    return facts, kept  # type: ignore[return-value]


def _are_texts(values: object) -> bool:
    return isinstance(values, Iterable) and all(isinstance(value, str) for value in values)


def _bytes(tensor: Tensor) -> NDArray[np.uint8]:
    """Return the bytes of a tensor, without copying them if it is contiguous on the CPU."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if not plain.numel():
        return np.zeros(0, np.uint8)
    return plain.view(torch.uint8).numpy()


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
