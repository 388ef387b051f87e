"""Fingerprints of tensors and settings, to recognize the same ones in a later run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["facts_of", "fingerprint", "fingerprint_run", "tensors_in", "weights_of"]


def fingerprint(tensors: Iterable[tuple[str, object]], *facts: Any) -> str:
    """Hash named tensors and JSON-ready facts to 16 hexadecimal digits; non-tensors are skipped."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in tensors:
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            plain = tensor.detach().cpu().resolve_conj().resolve_neg()
            flat = plain.contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def fingerprint_run(
    model: nn.Module, calibration: Iterable[Any], touch: Callable[[int], None]
) -> str:
    """Hash a network, all tensors of its calibration data and this version.

    Of the network, all weights and buffers count, and the kinds of its modules with the settings
    of those of torch; not the code of its forward pass. ``touch`` is called with the size of every
    weight before it is read.
    """
    state = model.state_dict().keys()
    buffers = ((name, tensor) for name, tensor in model.named_buffers() if name not in state)
    data = (("", tensor) for batch in calibration for tensor in tensors_in(batch))
    modules = [(name, *_kind(module)) for name, module in model.named_modules()]
    tensors = chain(weights_of(model, touch), buffers, data)
    return fingerprint(tensors, version("fewbits"), modules)


def facts_of(
    model: nn.Module, batches: Sequence[Any], touch: Callable[[int], None] = lambda size: None
) -> dict[str, str]:
    """Return fingerprints of what several processes must have in common, by what they are of."""
    tensors = (("", tensor) for batch in batches for tensor in tensors_in(batch))
    return {
        "weights of the network": fingerprint(weights_of(model, touch)),
        "number of calibration batches": str(len(batches)),
        "contents of the calibration batches": fingerprint(tensors),
    }


def _kind(module: nn.Module) -> tuple[str, str]:
    """Return the class of a module, and its settings if they are known to have a stable text."""
    kind = type(module)
    known = kind.__module__.startswith("torch.nn.")
    return kind.__qualname__, module.extra_repr() if known else ""


def weights_of(model: nn.Module, touch: Callable[[int], None]) -> Iterator[tuple[str, object]]:
    """Yield the state dict of a network; ``touch`` is told the size of each tensor before."""
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            touch(tensor.nbytes)
        yield name, tensor


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch, in tuples, lists and mappings at any depth."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, (list, tuple, Mapping)):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from tensors_in(part)
