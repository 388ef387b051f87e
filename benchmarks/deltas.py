"""Bytes of what changed between two checkpoints: SmolLM2 before and after a few steps of training.

    python benchmarks/deltas.py FOLDER --train --steps 30 --seed 0  # some CPU minutes
    python benchmarks/deltas.py FOLDER              # measures all that was trained, and records it

The weights are float32 while they are trained (AdamW), and bfloat16 before and after. Against the
exact delta: the XOR of the two files under zstd -19 and xz -9, and the whole new checkpoint. And an
update of 1 % of the weights, against (index, value) pairs under zstd -19.
"""

from __future__ import annotations

import argparse
import lzma
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fewbits
from images import ROOT, data_folder
from packaged import AbsentError, smollm2, smollm2_folder, _transformers
from record import write

TEXT = "tinyshakespeare.txt"
BATCH, LENGTH, RATE = 4, 64, 2e-5


def _windows(seed: int) -> Callable[[], Tensor]:
    """Return a function that draws a batch of tokens."""
    text = (data_folder("text") / TEXT).read_text(encoding="utf-8")
    tokenizer = _transformers().AutoTokenizer.from_pretrained(smollm2_folder())
    tokens = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    generator = torch.Generator().manual_seed(seed)

    def draw() -> Tensor:
        starts = torch.randint(len(tokens) - LENGTH, (BATCH,), generator=generator)
        return torch.stack([tokens[start : start + LENGTH] for start in starts.tolist()])

    return draw


def train(folder: Path, steps: int, seed: int) -> None:
    """Fine-tune on Tiny Shakespeare and keep the weights in bfloat16, with what was done."""
    torch.manual_seed(seed)
    model = smollm2(torch.float32).train()
    draw, losses = _windows(seed), []
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.0)
    began = time.process_time()
    for step in range(steps):
        tokens = draw()
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
        print(f"step {step + 1}: loss {losses[-1]:.3f}, {time.process_time() - began:.0f} s")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"seed{seed}.safetensors"
    told = {"steps": steps, "seed": seed, "batch": BATCH, "length": LENGTH, "rate": RATE}
    told |= {"cpu_seconds": round(time.process_time() - began), "losses": losses}
    save_file(_plain(model.bfloat16()), path, {k: str(v) for k, v in told.items()})
    print(f"wrote {path}")


def _plain(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights, each tied one once."""
    return {name: value.detach().clone() for name, value in model.named_parameters()}
