"""GGUF files of Llamas: those the ``gguf`` package can quantize, and sizes of the other types.

The package's own quantizers make Q8_0, Q5_1, Q5_0, Q4_1 and Q4_0 (and MXFP4, which llama.cpp
reserves for mixtures of experts). K and IQ types it can only read: of those there are sizes alone,
by the rules of llama.cpp for which tensor gets which type. These need rows of a multiple of 256
weights; others fall back to a type of blocks of 32.

Files hold no tokenizer, as those of the other tools in the comparison. The rows of queries and keys
keep their order, which changes neither bytes nor values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from packaged import library

__all__ = ["MIXES", "TYPES", "mix_bytes", "read", "write"]

TYPES = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
FALLBACK = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # others: IQ4_NL


def _kit() -> Any:
    return library("gguf", "gguf")


def _names(model: nn.Module) -> dict[str, str]:
    """Return llama.cpp's name of each parameter of a Llama."""
    kit = _kit()
    table = kit.get_tensor_name_map(kit.MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    return {name: table.get_name(name, (".weight",)) for name, _ in model.named_parameters()}


def _type(name: str, tensor: Tensor, kind: str, tied: bool) -> str:
    if tensor.dim() < 2:
        return "F32"
    return "Q8_0" if name == "token_embd.weight" and not tied else kind


def write(model: nn.Module, folder: Path, kind: str, tied: bool) -> None:
    """Write ``model.gguf``, its matrices quantized by the gguf package."""
    kit = _kit()
    writer = kit.GGUFWriter(folder / "model.gguf", "llama")
    _describe(writer, model.config)
    names = _names(model)
    for name, tensor in model.named_parameters():
        chosen = kit.GGMLQuantizationType[_type(names[name], tensor, kind, tied)]
        data = kit.quantize(tensor.detach().float().numpy(), chosen)
        writer.add_tensor(names[name], data, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: Any, config: Any) -> None:
    """Write what llama.cpp needs to build the network."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def read(model: nn.Module, folder: Path, kind: str, tied: bool) -> dict[str, Tensor]:
    """Return float32 values by parameter name."""
    kit = _kit()
    names = {theirs: ours for ours, theirs in _names(model).items()}
    found = {}
    for tensor in kit.GGUFReader(folder / "model.gguf").tensors:
        values = kit.dequantize(tensor.data, tensor.tensor_type)
        found[names[tensor.name]] = torch.from_numpy(values.copy())
    return found


def _more(layer: int, layers: int) -> bool:
    """Whether llama.cpp gives a layer more bits in its mixes "M"."""
    edge = layer < layers // 8 or layer >= 7 * layers // 8
    return edge or (layer - layers // 8) % 3 == 2


def _q2_k(part: str, layer: int, layers: int) -> str:
    return "Q3_K" if part in ("attn_v", "attn_output", "ffn_down") else "Q2_K"


def _q3_k_m(part: str, layer: int, layers: int) -> str:
    early = {"attn_v": layer < 2, "ffn_down": layer < layers // 16, "attn_output": False}
    return ("Q5_K" if early[part] else "Q4_K") if part in early else "Q3_K"


def _q4_k_m(part: str, layer: int, layers: int) -> str:
    return "Q6_K" if part in ("attn_v", "ffn_down") and _more(layer, layers) else "Q4_K"


def _iq3_xxs(part: str, layer: int, layers: int) -> str:
    return {"attn_q": "IQ2_S", "attn_k": "IQ2_S", "attn_output": "IQ3_S"}.get(part, "IQ3_XXS")


def _iq2_xxs(part: str, layer: int, layers: int) -> str:
    special = part == "attn_v" or (part == "ffn_down" and layer < layers // 8)
    return "Q2_K" if special else "IQ2_XXS"


# Types by part of a block, for a Llama with fewer than four queries to a key; the IQ types with an
# importance matrix, without which llama.cpp refuses or enlarges them.
MIXES: dict[str, Callable[[str, int, int], str]] = {
    "Q4_K_M": _q4_k_m,
    "Q3_K_M": _q3_k_m,
    "Q2_K": _q2_k,
    "IQ3_XXS": _iq3_xxs,
    "IQ2_XXS": _iq2_xxs,
}


def mix_bytes(model: nn.Module, mix: str) -> int:
    """Return the bytes of the tensors in a mix of llama.cpp, without header and padding."""
    sizes = _kit().GGML_QUANT_SIZES
    types = _kit().GGMLQuantizationType
    total, names, layers = 0, _names(model), model.config.num_hidden_layers
    for name, tensor in model.named_parameters():
        theirs, kind = names[name], "F32"
        if tensor.dim() == 2:
            parts = theirs.split(".")
            kind = "Q6_K" if parts[0] != "blk" else MIXES[mix](parts[2], int(parts[1]), layers)
            if tensor.shape[1] % sizes[types[kind]][0]:
                kind = FALLBACK.get(kind, "IQ4_NL")
        block, size = sizes[types[kind]]
        total += math.prod(tensor.shape) // block * size
    return total
