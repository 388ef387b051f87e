"""State dicts as deltas see them: every tensor once, as bytes, with a fingerprint of them all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...container.frame import MAGIC
from ...errors import require
from ...sources.checkpoints.state_dicts import read_state_dict as read_weights
from ..load import read_state_dict

__all__ = ["Base", "bytes_of", "dtype_of", "fingerprint_of", "owned", "read_base", "same"]

Base: TypeAlias = "Mapping[str, Tensor] | nn.Module | str | PathLike[str]"


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
        facts = f"{len(name)} {name} {dtype_of(tensor)} {list(tensor.shape)}"
        digest.update(facts.encode("utf-8", "surrogatepass"))
        digest.update(bytes_of(tensor).data)
    return digest.hexdigest()[:32]


def owned(
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


def same(new: Tensor, old: Tensor | None) -> bool:
    """Return whether nothing changed, to the bit."""
    if old is None or new.shape != old.shape or new.dtype != old.dtype:
        return False
    return bool(np.array_equal(bytes_of(new), bytes_of(old)))


def bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    """Return the bytes of a tensor, without copying them if it is contiguous on the CPU."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if not plain.numel():
        return np.zeros(0, np.uint8)
    return plain.view(torch.uint8).numpy()


def dtype_of(tensor: Tensor) -> str:
    """Return the name of a tensor's dtype."""
    return str(tensor.dtype).removeprefix("torch.")
