"""Write a Llama-shaped network of random weights as a Hugging Face folder, shard by shard.

    python benchmarks/llama_shards.py 1b FOLDER
    python benchmarks/llama_shards.py 110m FOLDER --shard-mb 100

For measuring size, time and memory only: the network has learned nothing. Its weights are bfloat16
and look like trained ones to a quantizer: rows of log-normal standard deviation, a few columns
larger than the rest. Memory does not grow with the network: one shard is held at a time.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["SHAPES", "Shape", "write_llama"]

META = {"format": "pt"}
ROWS = 4096  # drawn at a time in float32
MEDIAN, SPREAD = 0.028, 0.25  # of the rows' standard deviations: 80% lie in 0.020 to 0.039
OUTLIERS, OUTLIER = 0.003, 4.0  # fraction of the columns, and how much larger they are


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama network with grouped-query attention and an untied output matrix."""

    layers: int
    width: int
    hidden: int
    heads: int
    groups: int
    vocabulary: int = 32_000

    @property
    def head(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield names and shapes of all tensors in the order of the network."""
        keys = self.groups * self.head
        yield "model.embed_tokens.weight", (self.vocabulary, self.width)
        for place in range(self.layers):
            start = f"model.layers.{place}"
            yield f"{start}.self_attn.q_proj.weight", (self.width, self.width)
            yield f"{start}.self_attn.k_proj.weight", (keys, self.width)
            yield f"{start}.self_attn.v_proj.weight", (keys, self.width)
            yield f"{start}.self_attn.o_proj.weight", (self.width, self.width)
            yield f"{start}.mlp.gate_proj.weight", (self.hidden, self.width)
            yield f"{start}.mlp.up_proj.weight", (self.hidden, self.width)
            yield f"{start}.mlp.down_proj.weight", (self.width, self.hidden)
            yield f"{start}.input_layernorm.weight", (self.width,)
            yield f"{start}.post_attention_layernorm.weight", (self.width,)
        yield "model.norm.weight", (self.width,)
        yield "lm_head.weight", (self.vocabulary, self.width)

    def parameters(self) -> int:
        """Return the number of parameters."""
        return sum(math.prod(shape) for _, shape in self.tensors())

    def config(self) -> dict[str, Any]:
        """Return config.json as transformers reads it."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.width,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.groups,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "dtype": "bfloat16",
        }


SHAPES = {
    "110m": Shape(layers=10, width=768, hidden=2048, heads=12, groups=4),
    "300m": Shape(layers=21, width=1024, hidden=2816, heads=16, groups=4),
    "1b": Shape(layers=22, width=2048, hidden=5632, heads=32, groups=4),  # that of TinyLlama
}


def _drawn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return bfloat16 weights; float32 is only held for ``ROWS`` rows."""
    if len(shape) == 1:
        return (1 + 0.1 * torch.randn(shape, generator=generator)).to(torch.bfloat16)
    rows, columns = shape
    scale = MEDIAN * (SPREAD * torch.randn(rows, 1, generator=generator)).exp()
    larger = torch.ones(columns)
    count = max(1, round(OUTLIERS * columns))
    larger[torch.randperm(columns, generator=generator)[:count]] = OUTLIER
    weight = torch.empty(shape, dtype=torch.bfloat16)
    for first in range(0, rows, ROWS):
        part = scale[first : first + ROWS]
        values = torch.randn(len(part), columns, generator=generator)
        weight[first : first + ROWS] = values.mul_(part).mul_(larger)
    return weight


def _shards(shape: Shape, most: int) -> list[dict[str, tuple[int, ...]]]:
    """Divide the tensors, in order, into shards of at most so many bytes."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, dimensions in shape.tensors():
        size = 2 * math.prod(dimensions)
        if shards[-1] and filled + size > most:
            shards.append({})
            filled = 0
        shards[-1][name] = dimensions
        filled += size
    return shards


def write_llama(folder: Path, shape: Shape, seed: int = 0, shard_bytes: int = 500_000_000) -> None:
    """Write config.json, the shards and their index into ``folder``, which is made.

    The weights do not depend on ``shard_bytes``, the largest number of bytes of a shard's tensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    shards = _shards(shape, shard_bytes)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / name, shard, generator)
        places |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": 2 * shape.parameters()}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1) + "\n")


def _write_shard(path: Path, shard: dict[str, tuple[int, ...]], generator: torch.Generator) -> None:
    """Draw and write one shard; a function of its own, so that no two shards are held."""
    save_file({name: _drawn(size, generator) for name, size in shard.items()}, path, META)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-mb", type=int, default=500, help="megabytes at most in a shard")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shape = SHAPES[options.shape]
    write_llama(options.folder, shape, options.seed, options.shard_mb * 10**6)
    print(f"wrote {shape.parameters() / 1e6:.1f} million parameters to {options.folder}")


if __name__ == "__main__":
    main()
