"""Checkpoints of safetensors files that stay on disk: a network over mapped files."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ...engine.network.naming import fit_names, joined
from ...engine.network.shared_memory import extent_of, same_values
from ...engine.paged.paging import Pager, mapped_tensor, open_mapping
from ...errors import SourceError
from .checkpoint import COUNTERS, check_fit
from .state_dicts import checkpoint_file, first_names, shards_of

__all__ = ["MappedCheckpoint", "attach", "map_checkpoint", "misfit"]

_DTYPES = {
    "C64": torch.complex64,
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
}


@dataclass(frozen=True, eq=False)
class MappedCheckpoint:
    """Tensors over mapped files, which are read when they are used.

    Attributes:
        path: the file, index or folder that was named.
        tensors: name to tensor.
        mappings: the mapped files.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    mappings: tuple[mmap.mmap, ...]


def map_checkpoint(path: str | Path) -> MappedCheckpoint:
    """Open a checkpoint without reading its tensors.

    Args:
        path: a ``.safetensors`` file, the ``.index.json`` of several, or a folder with one of these
            (such as that of a Hugging Face model).

    Raises:
        SourceError: no such checkpoint, or one that is not of safetensors files.
    """
    file = checkpoint_file(path)
    files = shards_of(file) if file.name.endswith(".index.json") else {file.name: None}
    tensors: dict[str, Tensor] = {}
    mappings = []
    for name, wanted in files.items():
        mapping, found = _mapped_file(file.parent / name)
        mappings.append(mapping)
        lost = [key for key in wanted or () if key not in found]
        if lost:
            raise SourceError(
                f"{file}: {first_names(lost)} not in {name}. The index and the shards belong to "
                "different checkpoints; download it again."
            )
        tensors |= found
    return MappedCheckpoint(Path(path), tensors, tuple(mappings))


def _mapped_file(path: Path) -> tuple[mmap.mmap, dict[str, Tensor]]:
    if path.suffix != ".safetensors":
        raise SourceError(
            f"{path}: only safetensors files can be read while they are used. Convert the "
            "checkpoint with safetensors.torch.save_file, or load it into the network first."
        )
    try:
        with safe_open(path, framework="pt"):  # checks the header and every offset
            pass
        with path.open("rb") as file:
            mapping = open_mapping(file, shared=False)
    except Exception as error:  # the library raises its own errors, and any of the system's
        raise SourceError(f"{path}: is not a valid safetensors file: {error}") from error
    start = 8 + int.from_bytes(mapping[:8], "little")
    header: dict[str, Any] = json.loads(mapping[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        dtype, shape = _DTYPES.get(entry["dtype"]), tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        if dtype is None or end - begin != math.prod(shape) * dtype.itemsize:
            raise SourceError(f"{path}: tensor {name!r} has the unknown dtype {entry['dtype']!r}.")
        tensors[name] = mapped_tensor(mapping, start + begin, shape, dtype)
    return mapping, tensors


def attach(model: nn.Module, checkpoint: MappedCheckpoint, pager: Pager) -> None:
    """Let the parameters of ``model`` be those of a checkpoint, without reading them.

    Parameters get the dtypes of the checkpoint; buffers are copied into those of the network. Tied
    parameters stay one tensor. From then on ``pager`` gives back memory while the network runs.

    Raises:
        SourceError: tensors are missing, unexpected or misshapen, or buffers without values are not
            in the checkpoint. ``model`` is unchanged.
    """
    loaded = _fitted(model, checkpoint)
    olds = dict(model.named_parameters(remove_duplicate=False))
    news: dict[object, nn.Parameter] = {}
    for name, old in olds.items():
        news.setdefault(_identity(old), nn.Parameter(loaded[name], old.requires_grad))
    for path, module in model.named_modules(remove_duplicate=False):
        for leaf, buffer in list(module._buffers.items()):
            values = loaded.get(joined(path, leaf))
            if buffer is not None and _identity(buffer) in news:
                module._buffers[leaf] = news[_identity(buffer)].data
            elif buffer is not None and values is not None:
                dtype = values.dtype if buffer.is_meta else buffer.dtype
                module._buffers[leaf] = values.to(dtype, copy=True)
    for name, old in olds.items():  # names and modules may be several for one parameter
        path, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(path), leaf, news[_identity(old)])
    for mapping in checkpoint.mappings:
        pager.add(mapping)
    pager.watch(model)


def misfit(model: nn.Module, path: str | Path) -> str:
    """Return why a checkpoint cannot be attached to ``model``; "" if it can."""
    try:
        _fitted(model, map_checkpoint(path))
    except SourceError as error:
        return str(error)
    return ""


def _fitted(model: nn.Module, checkpoint: MappedCheckpoint) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint under the names of ``model``; raise if they do not fit."""
    wanted = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    names = fit_names(checkpoint.tensors, wanted, renamed=False)
    loaded = {names.get(name, name): tensor for name, tensor in checkpoint.tensors.items()}
    _add_optional(model, loaded, wanted)
    trained = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    check_fit(loaded, wanted, trained, checkpoint.path, type(model).__name__)
    _check_names(model, loaded)
    return loaded


def _add_optional(
    model: nn.Module, loaded: dict[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    """Add tied names, and counters that no result depends on, which may be absent.

    Averaging counters of no module are dropped, and buffers that are not to be stored, which
    checkpoints of other versions of a network have.
    """
    for name in {name for name, _ in model.named_buffers()} - wanted.keys():
        loaded.pop(name, None)
    for name in [n for n in loaded if n not in wanted and n.rpartition(".")[2] == "n_averaged"]:
        del loaded[name]
    tied: dict[object, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied.setdefault(_identity(parameter), []).append(name)
    for names in tied.values():
        given = [name for name in names if name in loaded]
        for name in given[1:]:
            _check_tied(loaded, given[0], name)
        for name in names if given else ():
            loaded.setdefault(name, loaded[given[0]])
    for name, tensor in wanted.items():
        if name not in loaded and name.endswith(COUNTERS):
            loaded[name] = torch.zeros_like(tensor, device="cpu")


def _check_tied(loaded: Mapping[str, Tensor], first: str, other: str) -> None:
    """Check that two names of one parameter have the same values, if both have its shape."""
    one, two = loaded[first], loaded[other]
    if one.shape == two.shape and not (one.dtype == two.dtype and same_values(one, two)):
        raise SourceError(
            f"{first!r} and {other!r} are one parameter in the network, but have different values "
            "in the checkpoint. Build the network with a parameter for each (for a Hugging Face "
            "model, tie_word_embeddings=False)."
        )


def _identity(tensor: Tensor) -> object:
    """Return what is equal for tensors that are one: their memory, or the object if it has none."""
    return extent_of(tensor) or id(tensor)


def _check_names(model: nn.Module, loaded: Mapping[str, Tensor]) -> None:
    """Check that every parameter, and every buffer without values, is in the checkpoint."""
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    hidden = [name for name in names if name not in loaded]
    if hidden:
        raise SourceError(
            f"{len(hidden)} parameters of the network have other names in its state dict: "
            f"{first_names(hidden)}. Load the checkpoint into the network instead of passing it "
            "as weights=."
        )
    empty = [n for n, b in model.named_buffers() if b.is_meta and n not in loaded]
    if empty:
        raise SourceError(
            f"{len(empty)} buffers have no values and are not in the checkpoint: "
            f"{first_names(empty)}. Build the network in 'with fewbits.empty_weights():', which "
            "leaves out parameters only, instead of on the meta device."
        )
