"""Bytes of what changed between two checkpoints: SmolLM2 before and after a few steps of training.

    python benchmarks/deltas.py FOLDER --train --steps 30 --seed 0  # some CPU minutes
    python benchmarks/deltas.py FOLDER              # measures all that was trained, and records it

The weights are float32 while they are trained (AdamW, all layers), and bfloat16 before and after.
Against the exact delta: the XOR of both under zstd -19 (and with --xz under xz -6), and the whole
new checkpoint. And an update of 1 % of the weights, drawn at random, against (index, value) pairs
under zstd -19. Every delta is applied and compared bit for bit.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fewbits
from images import data_folder
from packaged import _transformers, smollm2, smollm2_folder
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


def _bits(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    result = call()
    return result, round(time.perf_counter() - began, 2)


def _packed(data: bytes, *command: str) -> dict[str, Any]:
    """Return bytes and seconds of a program that compresses a file to its standard output."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(data)
        whole = [*command, str(path)]
        found, seconds = _timed(lambda: subprocess.run(whole, capture_output=True, check=True))
        found = found.stdout
    return {"what": " ".join(command), "bytes": len(found), "seconds": seconds}


def _delta(new: Mapping[str, Tensor], base: Mapping[str, Tensor], effort: str) -> dict[str, Any]:
    data, seconds = _timed(lambda: fewbits.encode_delta(new, base, effort=effort, threads=1))
    found, applying = _timed(lambda: fewbits.apply_delta(data, base, threads=1))
    exact = found.keys() == new.keys() and all(
        np.array_equal(_bits(found[name]), _bits(tensor)) for name, tensor in new.items()
    )
    row = {"what": f"fewbits, {effort}", "bytes": len(data), "seconds": seconds}
    return row | {"apply_seconds": applying, "exact": exact}


def _facts(new: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Any]:
    changed = sum(int((new[name] != base[name]).sum()) for name in new)
    values = sum(tensor.numel() for tensor in new.values())
    whole = sum(tensor.nbytes for tensor in new.values())
    return {"values": values, "changed": changed, "share": changed / values, "weights_bytes": whole}


def tuned(path: Path, base: Mapping[str, Tensor], xz: bool) -> dict[str, Any]:
    """Measure the delta of one fine-tuned checkpoint, and the XOR under general coders."""
    new = {name: tensor for name, tensor in load_file(path).items() if name in base}
    with safe_open(path, "pt") as file:
        told = file.metadata()
    rows = [_delta(new, base, "fast")]
    print(rows[-1])
    changes = b"".join((_bits(new[name]) ^ _bits(base[name])).tobytes() for name in new)
    rows.append(_packed(changes, "zstd", "-19", "-q", "-T1", "-c"))
    print(rows[-1])
    if xz:
        rows.append(_packed(changes, "xz", "-6", "-T1", "-c"))
        print(rows[-1])
    return {"name": path.stem, "trained": told, **_facts(new, base), "rows": rows}


def sparse(base: Mapping[str, Tensor], share: float, seed: int) -> dict[str, Any]:
    """Measure an update of a share of all weights, by a normal step of 2 % of their spread."""
    generator = torch.Generator().manual_seed(seed)
    new, pairs = {}, []
    for name, tensor in base.items():
        step = 0.02 * float(tensor.float().std()) * torch.randn(tensor.shape, generator=generator)
        chosen = torch.rand(tensor.shape, generator=generator) < share
        new[name] = torch.where(chosen, (tensor.float() + step).to(tensor.dtype), tensor)
        places = torch.nonzero((new[name] != tensor).view(-1)).view(-1)
        gaps = np.diff(places.numpy(), prepend=0).astype("<u4")
        pairs += [gaps.tobytes(), _bits(new[name].view(-1)[places]).tobytes()]
    rows = [_delta(new, base, "fast"), _packed(b"".join(pairs), "zstd", "-19", "-q", "-T1", "-c")]
    rows[-1]["what"] = "(index as the gap to the one before, value), zstd -19"
    print(*rows, sep="\n")
    return {"name": f"{share:.0%} of the weights", "seed": seed, **_facts(new, base), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the fine-tuned checkpoints")
    parser.add_argument("--train", action="store_true", help="fine-tune, and write one there")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--match", default="", help="only tensors whose names begin so")
    parser.add_argument("--xz", action="store_true", help="compare with xz too")
    parser.add_argument("--record", type=Path, help="folder for the record")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.train:
        train(chosen.folder, chosen.steps, chosen.seed)
        return
    base = load_file(smollm2_folder() / "model.safetensors")
    base = {name: tensor for name, tensor in base.items() if name.startswith(chosen.match)}
    files = sorted(chosen.folder.glob("seed*.safetensors"))
    cases = [sparse(base, 0.01, 0), *(tuned(path, base, chosen.xz) for path in files)]
    write(
        "deltas",
        model="SmolLM2-135M-Instruct, bfloat16",
        data="Tiny Shakespeare",
        folder=chosen.record,
        match=chosen.match,
        cases=cases,
    )


if __name__ == "__main__":
    main()
