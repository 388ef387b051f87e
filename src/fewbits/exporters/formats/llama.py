"""A Llama as llama.cpp knows it: names of its parts, order of rows, and keys."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .gguf_file import Value

__all__ = ["Llama"]

_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_INNER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_PART = re.compile(r"model\.layers\.(\d+)\.(.+)")
_ROPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class Llama:
    """The settings of a ``LlamaForCausalLM``, as its ``config.json`` has them."""

    config: Mapping[str, Any]

    def hindrance(self, names: Iterable[str]) -> str:
        """Return why llama.cpp could not read the network as a Llama; "" if it could.

        Args:
            names: of its tensors.
        """
        config = self.config
        if not config:
            return "it has no configuration of transformers"
        if config.get("architectures") != ["LlamaForCausalLM"]:
            return "it is no LlamaForCausalLM"
        if config.get("hidden_act") not in ("silu", "swish"):
            return f"its activation is {config.get('hidden_act')}"
        if self._rope.get("rope_type", "default") not in _ROPES:
            return f"its positions are scaled by {self._rope.get('rope_type')!r}"
        strange = next((name for name in names if not self.name(name)), "")
        return f"{strange!r} is no part of a Llama" if strange else ""

    def name(self, name: str) -> str:
        """Return llama.cpp's name of a tensor; "" if it has none."""
        module, _, leaf = name.rpartition(".")
        found = _PART.fullmatch(module)
        part = _OUTER.get(module, "")
        if found is not None and found[2] in _INNER:
            part = f"blk.{found[1]}.{_INNER[found[2]]}"
        return f"{part}.{leaf}" if part and leaf in ("weight", "bias") else ""

    def order(self, name: str) -> NDArray[np.intp] | None:
        """Return the order in which rows of queries and keys are stored; None for other tensors.

        transformers rotates the first half of a head with the second, llama.cpp neighbours.
        """
        module = name.rpartition(".")[0]
        heads = {"self_attn.q_proj": self._heads, "self_attn.k_proj": self._key_heads}
        count = next((n for part, n in heads.items() if module.endswith(part)), 0)
        if not count:
            return None
        rows = np.arange(count * self._width)
        return rows.reshape(count, 2, self._width // 2).swapaxes(1, 2).reshape(-1)

    def keys(self) -> dict[str, Value]:
        """Return what llama.cpp needs to build the network."""
        config, rope = self.config, self._rope
        keys: dict[str, Value] = {
            "llama.vocab_size": int(config["vocab_size"]),
            "llama.context_length": int(config["max_position_embeddings"]),
            "llama.embedding_length": int(config["hidden_size"]),
            "llama.block_count": int(config["num_hidden_layers"]),
            "llama.feed_forward_length": int(config["intermediate_size"]),
            "llama.attention.head_count": self._heads,
            "llama.attention.head_count_kv": self._key_heads,
            "llama.attention.key_length": self._width,
            "llama.attention.value_length": self._width,
            "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
            "llama.rope.dimension_count": self._width,
            "llama.rope.freq_base": self._base,
        }
        if rope.get("rope_type") == "linear":
            keys["llama.rope.scaling.type"] = "linear"
            keys["llama.rope.scaling.factor"] = float(rope["factor"])
        return keys

    def frequencies(self) -> Tensor | None:
        """Return by what the frequencies of positions are divided, where this is not one factor.

        Llama 3.1 divides low frequencies by a factor, leaves high ones, and blends in between.
        """
        rope = self._rope
        if rope.get("rope_type") != "llama3":
            return None
        factor, length = float(rope["factor"]), float(rope["original_max_position_embeddings"])
        low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
        exponents = torch.arange(0, self._width, 2, dtype=torch.float64) / self._width
        turns = length * self._base**-exponents / (2 * math.pi)  # in the original context
        share = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 / (share + (1 - share) / factor)).float()

    @property
    def _rope(self) -> Mapping[str, Any]:
        found = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        return found if isinstance(found, Mapping) else {}

    @property
    def _base(self) -> float:
        return float(self._rope.get("rope_theta") or self.config.get("rope_theta") or 10000.0)

    @property
    def _heads(self) -> int:
        return int(self.config["num_attention_heads"])

    @property
    def _key_heads(self) -> int:
        return int(self.config.get("num_key_value_heads") or self._heads)

    @property
    def _width(self) -> int:
        own = self.config.get("head_dim")
        return int(own or int(self.config["hidden_size"]) // self._heads)
