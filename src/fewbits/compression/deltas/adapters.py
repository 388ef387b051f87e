"""Compress a LoRA adapter, whose pairs of matrices are coded together."""

from __future__ import annotations

from ...coded import Contents, recognised
from ...engine.layers.pack import pack_raw
from ...errors import ConfigError, is_number, require
from ...methods.adapters import code_pairs, pairs_of
from ..coded_model import CodedModel
from .states import Base, owned, read_base

__all__ = ["compress_adapter"]


def compress_adapter(adapter: Base, error: float = 0.05) -> CodedModel:
    """Compress a LoRA adapter at an error of the products that it adds to weights.

    Matrices with names such as ``*.lora_A.weight`` and ``*.lora_B.weight`` (the layout of PEFT)
    become others with nearly the same product, on grids; all other tensors are kept exactly, and so
    are these if their dtype has no room for the error. The file loads as a state dict of the same
    names, shapes and dtypes.

    Args:
        adapter: a state dict, a network whose state dict has such names, or the path of a file or
            of a folder with one, such as ``adapter_model.safetensors``.
        error: largest root mean square error of all products together, relative to their size.

    Raises:
        ConfigError: ``error`` is out of range, or there are no pairs.
        SourceError: the path cannot be read.
    """
    known = is_number(error) and 0 < error < 1
    require(known, "error", "a number between 0 and 1", error)
    state, aliases = owned(read_base(adapter), "adapter")
    pairs = pairs_of(state)
    if not pairs:
        raise ConfigError(
            f"the adapter has no pairs of matrices *.lora_A.weight and *.lora_B.weight among its "
            f"{len(state)} tensors. Compress it as any other network, with fewbits.compress."
        )
    coded = code_pairs(pairs, error)
    tensors = {name: coded.get(name) or recognised(pack_raw(state[name])) for name in state}
    return CodedModel(Contents(tensors, aliases, metadata={"adapter": {"error": float(error)}}))
