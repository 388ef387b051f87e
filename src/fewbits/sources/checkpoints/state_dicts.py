"""Read checkpoint files into state dicts: single files or shards; no code is unpickled."""

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
from .unreadable import describe_other_file, how_to_resave

__all__ = [
    "Checkpoint",
    "checkpoint_file",
    "first_names",
    "read_checkpoint",
    "read_state_dict",
    "shards_of",
]

_PICKLED = {".pt", ".pth", ".th", ".bin", ".ckpt", ".tar"}
_INDEX = ".index.json"
_EXTRA = "_extra_state"
_MOST_WRAPPERS = 8
# Keys under which training scripts store a state dict, in order of preference.
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
        tensors: name to tensor, on the CPU.
        versions: metadata of ``state_dict()``: layer format versions by module; may be empty.
    """

    tensors: Mapping[str, Tensor]
    versions: Mapping[str, Any] = field(default_factory=dict)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a flat state dict to the CPU; see :func:`read_checkpoint`."""
    return dict(read_checkpoint(path).tensors)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint without unpickling code.

    Args:
        path: a ``.safetensors`` or PyTorch file, the ``.index.json`` of shards of either kind, or
            a folder with one of these. A dict that wraps the state dict under a common key
            ("state_dict", "model", ...), next to other training state, is unwrapped.

    Raises:
        SourceError: the file cannot be read; the message says what to do.
    """
    path = checkpoint_file(path)
    if path.name.endswith(_INDEX):
        return _sharded(path)
    return _single(path)


def checkpoint_file(path: str | Path) -> Path:
    """Return the checkpoint file that a path names: itself, or the one in a folder.

    Raises:
        SourceError: there is none, or several.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise SourceError(f"weights {str(path)!r} do not exist (looked in {Path.cwd()}).")
    return path


def shards_of(index: Path) -> dict[str, list[str]]:
    """Return the names in each shard of an index.

    Raises:
        SourceError: a damaged index, or shards that are missing.
    """
    shards: dict[str, list[str]] = {}
    for name, file in _weight_map(index).items():
        shards.setdefault(file, []).append(name)
    absent = [file for file in shards if not (index.parent / file).is_file()]
    if absent:
        raise SourceError(
            f"{index}: {len(absent)} of {len(shards)} shards are missing: {first_names(absent)}. "
            "Download the whole checkpoint."
        )
    return shards


def first_names(names: Iterable[str]) -> str:
    """Join the first three names for a message."""
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _single(path: Path) -> Checkpoint:
    known = path.suffix == ".safetensors" or path.suffix in _PICKLED
    other = describe_other_file(path) if known else ""
    if other:
        raise SourceError(f"{path}: {other}")
    if path.suffix == ".safetensors":
        try:
            return Checkpoint(load_file(path))
        except Exception as error:  # torch raises anything on impossible shapes
            raise SourceError(f"{path}: is not a valid safetensors file: {error}") from error
    if path.suffix not in _PICKLED:
        raise SourceError(
            f"{path}: unknown checkpoint type {path.suffix!r}; expected .safetensors, one of "
            f"{', '.join(sorted(_PICKLED))}, or the {_INDEX} of shards."
        )
    check_zip(path)
    check_pickles(path)
    return _unwrap(_read_pickled(path), path)


def _in_folder(folder: Path) -> Path:
    """Return the only checkpoint in a folder; prefers an index, then safetensors, then pickles."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    groups = (
        [path for path in files if path.name.endswith(f".safetensors{_INDEX}")],
        [path for path in files if path.name.endswith(_INDEX)],
        [path for path in files if path.suffix == ".safetensors"],
        [path for path in files if path.suffix in _PICKLED],
    )
    candidates = next((group for group in groups if group), [])
    usual = [p for p in candidates if p.name.startswith(("model.", "pytorch_model."))]
    if len(usual) == 1 or len(candidates) == 1:
        return (usual if len(usual) == 1 else candidates)[0]
    if not candidates:
        raise SourceError(
            f"the folder {str(folder)!r} contains no checkpoint: no {_INDEX}, no .safetensors "
            f"file and none of {', '.join(sorted(_PICKLED))}."
        )
    raise SourceError(
        f"the folder {str(folder)!r} contains {len(candidates)} checkpoints: "
        f"{first_names(path.name for path in candidates)}. Name the file."
    )


def _sharded(index: Path) -> Checkpoint:
    tensors: dict[str, Tensor] = {}
    mapped: dict[str, Tensor] = {}
    lost: list[str] = []
    for file, names in shards_of(index).items():
        content = _single(index.parent / file).tensors
        tensors |= content
        mapped |= {name: content[name] for name in names if name in content}
        lost += [f"{name} (not in {file})" for name in names if name not in content]
    if lost:
        raise SourceError(
            f"{index}: {len(lost)} names are in no shard: {first_names(lost)}. The index and the "
            "shards belong to different checkpoints; download it again."
        )
    return Checkpoint(tensors | mapped)


def _weight_map(index: Path) -> dict[str, str]:
    """Return the file of each name; only files next to the index are allowed."""
    try:
        data = read_json(read_text(index))
    except (OSError, ConfigError) as error:
        other = describe_other_file(index, texts=False) if isinstance(error, ConfigError) else ""
        what = other or f"cannot be read as JSON: it {error}"
        raise SourceError(f"{index}: {what}") from error
    files = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(files, dict) or not files:
        raise SourceError(f"{index}: is not an index of shards: it has no 'weight_map' of names.")
    for name, file in files.items():
        if not isinstance(file, str) or not _is_beside(file):
            raise SourceError(
                f"{index}: the shard of {name!r} is {file!r}, which is not a file next to the "
                "index. Only files in its own folder are read."
            )
    return {name: PurePosixPath(file).as_posix() for name, file in files.items()}


def _is_beside(file: str) -> bool:
    ways = (PurePosixPath(file), PureWindowsPath(file))
    inside = all(not way.anchor and way.name and ".." not in way.parts for way in ways)
    return inside and "\0" not in file


def _read_pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        known = re.search(r"GLOBAL (\S+)", str(error))
        kind, way = how_to_resave(path, known[1] if known else "", _WRAPPERS)
        what = f"contains an object of type {kind}" if known else "is damaged or has Python objects"
        raise SourceError(
            f"{path}: {what}; only tensors and plain values are loaded, and code is never "
            "unpickled. If you trust the file, save it again: x = torch.load(path, "
            f"weights_only=False), and then {way}."
        ) from error
    except Exception as error:  # the unpickler raises anything on a file that is not a pickle
        if "TorchScript" in str(error):
            raise SourceError(
                f"{path}: is a TorchScript archive, whose code is never run. Save its weights: "
                "torch.save(torch.jit.load(path).state_dict(), path)."
            ) from error
        raise SourceError(
            f"{path}: is not a PyTorch checkpoint or is damaged ({type(error).__name__}: {error}). "
            "Save it again with torch.save(model.state_dict(), path)."
        ) from error


def _unwrap(value: Any, path: Path) -> Checkpoint:
    for _ in range(_MOST_WRAPPERS):  # a pickled dict may even contain itself
        if not isinstance(value, Mapping):
            break
        inside = {k: v for k, v in value.items() if isinstance(v, Mapping) and _has_tensors(v)}
        key = next((key for key in _WRAPPERS if key in inside), None)
        plain = not any(isinstance(v, Tensor) and v.dim() for v in value.values())
        flat = [k for k, v in inside.items() if all(isinstance(x, Tensor) for x in v.values())]
        if key is None and plain and len(flat) > 1:
            raise SourceError(
                f"{path}: contains {len(flat)} state dicts, under {first_names(map(repr, flat))}. "
                f"Save the one you need: torch.save(torch.load(path)[{flat[0]!r}], path)."
            )
        if key is None and not (plain and flat):
            break
        value = inside[flat[0] if key is None else key]
    if not isinstance(value, Mapping) or not value:
        raise SourceError(
            f"{path}: contains a {type(value).__name__}; expected a dict of tensors. Save it again "
            "with torch.save(model.state_dict(), path)."
        )
    others = {str(name): v for name, v in value.items() if not isinstance(v, Tensor)}
    if others:
        wrong = first_names(f"{name} ({type(v).__name__})" for name, v in others.items())
        if all(name.rpartition(".")[2] == _EXTRA for name in others):
            raise SourceError(
                f"{path}: {len(others)} entries are extra states of layers (get_extra_state), not "
                f"tensors: {wrong}. Leave them out: torch.save({{k: v for k, v in model."
                "state_dict().items() if torch.is_tensor(v)}, path)."
            )
        raise SourceError(
            f"{path}: {len(others)} entries are not tensors: {wrong}. "
            "Save it again with torch.save(model.state_dict(), path)."
        )
    versions = getattr(value, "_metadata", None)
    tensors = {str(name): tensor for name, tensor in value.items()}
    return Checkpoint(tensors, versions if isinstance(versions, Mapping) else {})


def _has_tensors(value: Mapping[Any, Any]) -> bool:
    """Return whether a mapping contains tensors at any depth.

    In a pickle a mapping may occur in many places, even in itself; each is visited once.
    """
    pending, seen = [value], {id(value)}
    while pending:
        for part in pending.pop().values():
            if isinstance(part, Tensor):
                return True
            if isinstance(part, Mapping) and id(part) not in seen:
                seen.add(id(part))
                pending.append(part)
    return False
