"""Checkpoint files to state dicts: one file, or shards and their index; no code is unpickled."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from ...errors import ConfigError, SourceError
from ...files.json_values import read_json, read_text
from ..base.bounded import check_zip
from .pickles import check_pickles
from .unreadable import advice, foreign

__all__ = ["Checkpoint", "read_checkpoint", "read_state_dict", "some"]

_PICKLED = {".pt", ".pth", ".th", ".bin", ".ckpt", ".tar"}
_INDEX = ".index.json"
_EXTRA = "_extra_state"
_MOST_WRAPPERS = 8
# Under which keys training scripts keep a state dict, the one that is taken first of all first.
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema",
    "params_ema",
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A flat state dict.

    Attributes:
        tensors: by name, on the CPU.
        versions: what ``state_dict()`` tells of the layers' formats, by module; may be empty.
    """

    tensors: Mapping[str, Tensor]
    versions: Mapping[str, Any] = field(default_factory=dict)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a flat state dict to the CPU, as :func:`read_checkpoint` does."""
    return dict(read_checkpoint(path).tensors)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint; no code is unpickled.

    Args:
        path: a ``.safetensors`` or PyTorch file; the ``.index.json`` of shards of either kind; or a
            folder that holds one of these. A dict that wraps the state dict under a usual key
            ("state_dict", "model", ...), beside numbers and states of a training, is opened.

    Raises:
        SourceError: what cannot be read, with the way out.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise SourceError(f"weights {str(path)!r} do not exist (looked in {Path.cwd()}).")
    if path.name.endswith(_INDEX):
        return _sharded(path)
    return _single(path)


def some(names: Iterable[str]) -> str:
    """Return the first three names."""
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _single(path: Path) -> Checkpoint:
    known = path.suffix == ".safetensors" or path.suffix in _PICKLED
    other = foreign(path) if known else ""
    if other:
        raise SourceError(f"{path}: {other}")
    if path.suffix == ".safetensors":
        try:
            return Checkpoint(load_file(path))
        except Exception as error:  # shapes that torch cannot take make it stumble anywhere
            raise SourceError(f"{path}: is not a sound safetensors file: {error}") from error
    if path.suffix not in _PICKLED:
        raise SourceError(
            f"{path}: unknown kind of checkpoint {path.suffix!r}; expected .safetensors, one of "
            f"{', '.join(sorted(_PICKLED))}, or the {_INDEX} of shards."
        )
    check_zip(path)
    check_pickles(path)
    return _unwrapped(_read_pickled(path), path)


def _in_folder(folder: Path) -> Path:
    """Return the one checkpoint of a folder: an index before a file, safetensors before pickles."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    groups = (
        [path for path in files if path.name.endswith(f".safetensors{_INDEX}")],
        [path for path in files if path.name.endswith(_INDEX)],
        [path for path in files if path.suffix == ".safetensors"],
        [path for path in files if path.suffix in _PICKLED],
    )
    found = next((group for group in groups if group), [])
    usual = [path for path in found if path.name.startswith(("model.", "pytorch_model."))]
    if len(usual) == 1 or len(found) == 1:
        return (usual if len(usual) == 1 else found)[0]
    if not found:
        raise SourceError(
            f"the folder {str(folder)!r} holds no checkpoint: neither a {_INDEX}, nor a "
            f".safetensors file or one of {', '.join(sorted(_PICKLED))}."
        )
    raise SourceError(
        f"the folder {str(folder)!r} holds {len(found)} checkpoints: "
        f"{some(path.name for path in found)}. Name the file."
    )


def _sharded(index: Path) -> Checkpoint:
    shards: dict[str, list[str]] = {}
    for name, file in _weight_map(index).items():
        shards.setdefault(file, []).append(name)
    absent = [file for file in shards if not (index.parent / file).is_file()]
    if absent:
        raise SourceError(
            f"{index}: {len(absent)} of {len(shards)} shards are not beside it: {some(absent)}. "
            "Fetch the whole checkpoint."
        )
    tensors: dict[str, Tensor] = {}
    mapped: dict[str, Tensor] = {}
    lost: list[str] = []
    for file, names in shards.items():
        found = _single(index.parent / file).tensors
        tensors |= found
        mapped |= {name: found[name] for name in names if name in found}
        lost += [f"{name} (not in {file})" for name in names if name not in found]
    if lost:
        raise SourceError(
            f"{index}: {len(lost)} names are in no shard: {some(lost)}. Fetch the checkpoint "
            "again: index and shards belong to different ones."
        )
    return Checkpoint(tensors | mapped)


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file of each name; files are beside the index, and nowhere else."""
    try:
        data = read_json(read_text(index))
    except (OSError, ConfigError) as error:
        other = foreign(index, texts=False) if isinstance(error, ConfigError) else ""
        what = other or f"cannot be read as JSON: it {error}"
        raise SourceError(f"{index}: {what}") from error
    found = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(found, dict) or not found:
        raise SourceError(f"{index}: is no index of shards: it has no 'weight_map' of names.")
    for name, file in found.items():
        if not isinstance(file, str) or not _is_beside(file):
            raise SourceError(
                f"{index}: the shard of {name!r} is {file!r}, which is no file beside the index. "
                "Only files of its own folder are read."
            )
    return {name: PurePosixPath(file).as_posix() for name, file in found.items()}


def _is_beside(file: str) -> bool:
    ways = (PurePosixPath(file), PureWindowsPath(file))
    inside = all(not way.anchor and way.name and ".." not in way.parts for way in ways)
    return inside and "\0" not in file


def _read_pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        known = re.search(r"GLOBAL (\S+)", str(error))
        kind, way = advice(path, known[1] if known else "", _WRAPPERS)
        what = f"holds an object of {kind}" if known else "is damaged, or holds Python objects"
        raise SourceError(
            f"{path}: {what}, and not only tensors and plain values; code is never unpickled. If "
            "you trust it, save it again: x = torch.load(path, weights_only=False), and then "
            f"{way}."
        ) from error
    except Exception as error:  # a file that is no pickle makes the unpickler stumble anywhere
        if "TorchScript" in str(error):
            raise SourceError(
                f"{path}: is a TorchScript archive, whose code is never run. Save its values: "
                "torch.save(torch.jit.load(path).state_dict(), path)."
            ) from error
        raise SourceError(
            f"{path}: is no PyTorch checkpoint, or is damaged ({type(error).__name__}: {error}). "
            "Save it again with torch.save(model.state_dict(), path)."
        ) from error


def _unwrapped(value: Any, path: Path) -> Checkpoint:
    for _ in range(_MOST_WRAPPERS):  # a pickled dict may even contain itself
        if not isinstance(value, Mapping):
            break
        inside = {k: v for k, v in value.items() if isinstance(v, Mapping) and _has_tensors(v)}
        key = next((key for key in _WRAPPERS if key in inside), None)
        plain = not any(isinstance(v, Tensor) and v.dim() for v in value.values())
        flat = [k for k, v in inside.items() if all(isinstance(x, Tensor) for x in v.values())]
        if key is None and plain and len(flat) > 1:
            raise SourceError(
                f"{path}: holds {len(flat)} state dicts, under {some(map(repr, flat))}. Save the "
                f"one that is meant: torch.save(torch.load(path)[{flat[0]!r}], path)."
            )
        if key is None and not (plain and flat):
            break
        value = inside[flat[0] if key is None else key]
    if not isinstance(value, Mapping) or not value:
        raise SourceError(
            f"{path}: holds a {type(value).__name__}; expected a dict of tensors. Save it again "
            "with torch.save(model.state_dict(), path)."
        )
    others = {str(name): v for name, v in value.items() if not isinstance(v, Tensor)}
    if others:
        wrong = some(f"{name} ({type(v).__name__})" for name, v in others.items())
        if all(name.rpartition(".")[2] == _EXTRA for name in others):
            raise SourceError(
                f"{path}: {len(others)} entries are extra states of layers (get_extra_state), and "
                f"no tensors: {wrong}. Leave them out: torch.save({{k: v for k, v in model."
                "state_dict().items() if torch.is_tensor(v)}, path)."
            )
        raise SourceError(
            f"{path}: {len(others)} entries are no tensors: {wrong}. "
            "Save it again with torch.save(model.state_dict(), path)."
        )
    versions = getattr(value, "_metadata", None)
    tensors = {str(name): tensor for name, tensor in value.items()}
    return Checkpoint(tensors, versions if isinstance(versions, Mapping) else {})


def _has_tensors(value: Mapping[Any, Any]) -> bool:
    """Tell whether tensors are under a key, or under one below; nesting is that of a pickle.

    In a pickle a mapping may be in many places, and in itself: each is looked at once.
    """
    open_, seen = [value], {id(value)}
    while open_:
        for part in open_.pop().values():
            if isinstance(part, Tensor):
                return True
            if isinstance(part, Mapping) and id(part) not in seen:
                seen.add(id(part))
                open_.append(part)
    return False
