"""Fine-tune SmolLM2 on Tiny Shakespeare, all weights or LoRA, for the benchmark of deltas.

    python benchmarks/deltas_training.py --kind plain --seed 0  # some CPU minutes each

A step is one window of tokens from the first nine tenths of the text; the last tenth is held out.
Arithmetic and optimizer are float32; the checkpoint is bfloat16, as the network that it began from.
Of LoRA (Hu et al. 2022; queries and values of every block) there is the adapter, in float32 and in
the layout of PEFT, and the checkpoint with the adapter added to the weights. Finished runs stay in
.data/deltas and are not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from images import CACHE, data_folder
from packaged import _transformers, smollm2, smollm2_folder

__all__ = ["FOLDER", "KINDS", "adapter_of", "checkpoint", "held_out", "is_done", "told_of", "train"]

FOLDER = CACHE / "deltas"
TEXT = "tinyshakespeare.txt"
KINDS = ("plain", "lora")
STEPS, LENGTH = 200, 128
RATES = {"plain": 2e-5, "lora": 2e-4}
RANK, ALPHA = 8, 16
LOWERED = ("q_proj", "v_proj")
PREFIX = "base_model.model."


class LowRank(nn.Module):
    """A linear layer that does not learn, plus a product of two small matrices that do."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora_A = nn.Linear(linear.in_features, RANK, bias=False)
        self.lora_B = nn.Linear(RANK, linear.out_features, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        small: Tensor = self.lora_B(self.lora_A(inputs))
        return self.linear(inputs) + ALPHA / RANK * small

    @property
    def change(self) -> Tensor:
        """What is added to the weight of the linear layer."""
        return ALPHA / RANK * (self.lora_B.weight @ self.lora_A.weight)


def checkpoint(kind: str, seed: int) -> Path:
    """Return where the weights are, in bfloat16 and each tied one once."""
    return FOLDER / f"{kind}-seed{seed}.safetensors"


def adapter_of(seed: int) -> Path:
    """Return the folder of the adapter of a run with LoRA."""
    return FOLDER / f"adapter-seed{seed}"


def told_of(kind: str, seed: int) -> dict[str, Any]:
    """Return what was done, and how the loss went."""
    told: dict[str, Any] = json.loads(checkpoint(kind, seed).with_suffix(".json").read_text())
    return told


def is_done(kind: str, seed: int) -> bool:
    """Return whether a run has ended."""
    return checkpoint(kind, seed).with_suffix(".json").exists()


def _tokens() -> tuple[Tensor, Tensor]:
    """Return the tokens to train on, and those that are held out."""
    text = (data_folder("text") / TEXT).read_text(encoding="utf-8")
    tokenizer = _transformers().AutoTokenizer.from_pretrained(smollm2_folder())
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    end = len(tokens) * 9 // 10
    return tokens[:end], tokens[end:]


def held_out(windows: int, length: int) -> Tensor:
    """Return the first (windows, length) tokens of the text that no run has seen."""
    return _tokens()[1][: windows * length].view(windows, length)


def draws(length: int, seed: int) -> Iterator[Tensor]:
    """Yield windows (1, length) of the text to train on, at random places, without end."""
    tokens, generator = _tokens()[0], torch.Generator().manual_seed(seed)
    while True:
        start = int(torch.randint(len(tokens) - length, (1,), generator=generator))
        yield tokens[None, start : start + length]


def _with_adapters(model: nn.Module) -> dict[str, LowRank]:
    """Freeze a network but for adapters of some of its layers, and return these by name."""
    model.requires_grad_(False)
    names = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in LOWERED]
    found = {}
    for name in names:
        parent, _, leaf = name.rpartition(".")
        found[name] = LowRank(getattr(model.get_submodule(parent), leaf))
        setattr(model.get_submodule(parent), leaf, found[name])
    return found


def _merged(model: nn.Module, adapters: dict[str, LowRank]) -> dict[str, Tensor]:
    """Return the weights with the adapters added, in bfloat16, each tied one once."""
    state = {}
    for name, value in model.named_parameters():
        if ".lora_" not in name:
            plain = name.replace(".linear.", ".") if ".linear." in name else name
            layer = adapters.get(plain.rpartition(".")[0])
            whole = value if layer is None else value + layer.change
            state[plain] = whole.detach().bfloat16()
    return state


def _save_adapter(adapters: dict[str, LowRank], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        f"{PREFIX}{name}.{part}.weight": getattr(layer, part).weight.detach().clone()
        for name, layer in adapters.items()
        for part in ("lora_A", "lora_B")
    }
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    facts = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA}
    facts |= {"target_modules": list(LOWERED), "bias": "none", "lora_dropout": 0.0}
    (folder / "adapter_config.json").write_text(json.dumps(facts, indent=1) + "\n")


def train(kind: str, seed: int, length: int = LENGTH) -> None:
    """Fine-tune, and keep the checkpoint, the adapter if there is one, and what was done."""
    torch.manual_seed(seed)
    model = smollm2(torch.float32).train()
    adapters = _with_adapters(model) if kind == "lora" else {}
    learned = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(learned, RATES[kind], weight_decay=0.0, fused=True)
    losses, began = [], time.process_time()
    for step, tokens in zip(range(STEPS), draws(length, seed), strict=False):
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(loss.item(), 4))
        if step % 10 == 0:
            print(
                f"{kind} {seed}: step {step}, {losses[-1]:.3f}, {time.process_time() - began:.0f} s"
            )
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file(_merged(model, adapters), checkpoint(kind, seed), {"format": "pt"})
    if adapters:
        _save_adapter(adapters, adapter_of(seed))
    told = {"kind": kind, "seed": seed, "steps": STEPS, "batch": 1, "length": length}
    told |= {"rate": RATES[kind], "learned": sum(value.numel() for value in learned)}
    if adapters:
        told |= {"rank": RANK, "alpha": ALPHA, "layers": list(LOWERED)}
    told |= {"cpu_seconds": round(time.process_time() - began), "losses": losses}
    checkpoint(kind, seed).with_suffix(".json").write_text(json.dumps(told, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of a step")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for seed in chosen.seed:
        for kind in chosen.kind:
            if not is_done(kind, seed):
                train(kind, seed, chosen.length)


if __name__ == "__main__":
    main()
