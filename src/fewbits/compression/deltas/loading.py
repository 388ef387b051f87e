"""Read a delta from a file, as a state dict or into a network."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path

import torch
from torch import Tensor, nn

from ...engine.layers.pack import pack_raw
from ...errors import ConfigError, CorruptFileError
from ..coded_model import load_into
from .delta import apply_delta
from .states import Base

__all__ = ["fill", "read_delta"]


@torch.inference_mode(False)  # new tensors of the network are ordinary ones
def read_delta(
    path: str | PathLike[str],
    model: nn.Module | None,
    base: Base,
    max_decoded_bytes: int | None,
    threads: int,
) -> dict[str, Tensor] | nn.Module:
    """Apply the delta in a file to ``base``; see :func:`fewbits.load`."""
    try:
        state = apply_delta(
            Path(path).read_bytes(), base, max_decoded_bytes=max_decoded_bytes, threads=threads
        )
    except (ConfigError, CorruptFileError) as error:
        raise type(error)(f"{fspath(path)}: {error}") from error
    return state if model is None else fill(model, state, f"the delta {fspath(path)!r} on its base")


def fill(model: nn.Module, state: Mapping[str, Tensor], where: str) -> nn.Module:
    """Put a state dict, in which tied names share a tensor, into a network."""
    owners: dict[int, str] = {}
    aliases = {}
    for name, tensor in state.items():
        owner = owners.setdefault(id(tensor), name)
        if owner != name:
            aliases[name] = owner
    tensors = {name: pack_raw(tensor) for name, tensor in state.items() if name not in aliases}
    return load_into(tensors, aliases, model, where)
