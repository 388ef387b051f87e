"""``--weights FILE``: a safetensors or PyTorch checkpoint into a network, strictly."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import SourceError
from .bounded import check_zip

__all__ = ["load_weights", "read_state_dict"]

_PICKLED = {".pt", ".pth", ".th", ".bin", ".ckpt", ".tar"}
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "module")
_PREFIXES = ("module.", "_orig_mod.")


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint into ``model`` in place; every tensor must be there and fit.

    Two absences are harmless and allowed: another name of a tied weight, and batch norm's
    ``num_batches_tracked``, which no result depends on.

    Raises:
        SourceError: unreadable file, or the first missing, unexpected or misshapen names.
    """
    found = read_state_dict(path)
    wanted = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    present = {_place(wanted[name]) for name in found if name in wanted}
    missing = [
        name
        for name, tensor in wanted.items()
        if name not in found
        and not name.endswith("num_batches_tracked")
        and _place(tensor) not in present
    ]
    unexpected = [name for name in found if name not in wanted]
    misshapen = [
        f"{name} {tuple(found[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    problems = [
        f"{len(names)} {what} ({_some(names)})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
        )
        if names
    ]
    if problems:
        raise SourceError(
            f"{path}: does not fit {type(model).__name__}, {len(wanted)} tensors: "
            f"{'; '.join(problems)}. Use the factory the checkpoint was made with."
        )
    model.load_state_dict(found, strict=False)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a flat state dict to the CPU; no code is unpickled.

    A dict that wraps it under a usual key ("state_dict", "model", ...) is opened, and a prefix that
    all names share from ``DataParallel`` or ``torch.compile`` is dropped.
    """
    path = Path(path)
    if not path.is_file():
        raise SourceError(f"weights {str(path)!r} do not exist (looked in {Path.cwd()}).")
    if path.suffix == ".safetensors":
        try:
            return _without_prefix(load_file(path))
        except (SafetensorError, OSError) as error:
            raise SourceError(f"{path}: is not a sound safetensors file: {error}") from error
    if path.suffix not in _PICKLED:
        raise SourceError(
            f"{path}: unknown kind of checkpoint {path.suffix!r}; expected .safetensors or one of "
            f"{', '.join(sorted(_PICKLED))}."
        )
    check_zip(path)
    return _without_prefix(_unwrap(_read_pickled(path), path))


def _read_pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"{path}: is damaged, or holds Python objects and not only tensors; code is never "
            "unpickled. Save it again with torch.save(model.state_dict(), path)."
        ) from error
    except Exception as error:  # a file that is no pickle makes the unpickler stumble anywhere
        raise SourceError(
            f"{path}: is no PyTorch checkpoint, or is damaged ({type(error).__name__}: {error}). "
            "Save it again with torch.save(model.state_dict(), path)."
        ) from error


def _unwrap(value: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(value, Mapping) and not any(isinstance(v, Tensor) for v in value.values()):
        key = next((key for key in _WRAPPERS if isinstance(value.get(key), Mapping)), None)
        if key is None:
            break
        value = value[key]
    if not isinstance(value, Mapping) or not value:
        raise SourceError(f"{path}: holds a {type(value).__name__}; expected a dict of tensors.")
    wrong = [
        f"{name} ({type(v).__name__})" for name, v in value.items() if not isinstance(v, Tensor)
    ]
    if wrong:
        raise SourceError(
            f"{path}: {len(wrong)} entries are no tensors: {_some(wrong)}. "
            "Save it again with torch.save(model.state_dict(), path)."
        )
    return {str(name): tensor for name, tensor in value.items()}


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            return _without_prefix({name.removeprefix(prefix): v for name, v in state.items()})
    return state


def _place(tensor: Tensor) -> tuple[object, ...]:
    # Empty tensors share the null pointer; their names never stand for each other.
    return (tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride())


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
