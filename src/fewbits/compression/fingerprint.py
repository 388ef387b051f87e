"""Fingerprints of tensors and settings, to recognize the same ones in a later run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

__all__ = ["fingerprint"]


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
