"""Bytes of what changed between two checkpoints: SmolLM2 before and after 200 steps of training.

    python benchmarks/deltas_training.py  # some CPU minutes for each run; they stay in .data
    python benchmarks/deltas.py           # measures the runs that are done, and records it

All weights are bfloat16 before and after. Of every run: the exact delta; the XOR of both under fast
zstd, for the tensors of one layer and of seed 0 for the whole network also under zstd -19 and xz;
the whole new checkpoint under the recipe "lossless"; and of seed 0 deltas at a rate, with the
perplexity on text that no run has seen.
Adapters: at errors of their products, against exact ones and nearest rounding at the same error.
And an update of 1 % of the weights, drawn at random, against (index, value) pairs under zstd -19.
Every exact delta is applied and compared bit for bit. Times are CPU seconds on one thread.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import fewbits
from deltas_training import KINDS, adapter_of, checkpoint, draws, held_out, is_done, told_of
from lossless import _module
from packaged import perplexity, smollm2, smollm2_folder
from record import write

WINDOWS, LENGTH = 8, 512  # of the text that is held out
CALIBRATION = 64  # windows of 128 tokens of the text to train on, drawn with another seed
PART = "model.layers.10."
ERRORS = (0.02, 0.05, 0.1)
ZSTD = ("zstd", "-q", "-T1", "-c")
ZSTD_SLOW = (*ZSTD, "-19")
XZ = ("xz", "-6", "-T1", "-c")


def _bits(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """Return a result and the CPU seconds that it took, those of programs it ran included."""
    began = sum(os.times()[:4])
    result = call()
    return result, round(sum(os.times()[:4]) - began, 2)


def _packed(data: bytes, *command: str) -> dict[str, Any]:
    """Return bytes and seconds of a program that compresses a file to its standard output."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(data)
        whole = [*command, str(path)]
        found, seconds = _timed(lambda: subprocess.run(whole, capture_output=True, check=True))
        found = found.stdout
    return _told({"what": " ".join(command), "bytes": len(found), "cpu_seconds": seconds})


def _told(row: dict[str, Any]) -> dict[str, Any]:
    print(row, flush=True)
    return row


def _exact(new: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Any]:
    data, seconds = _timed(lambda: fewbits.encode_delta(new, base, threads=1))
    found, applying = _timed(lambda: fewbits.apply_delta(data, base, threads=1))
    exact = found.keys() == new.keys() and all(
        np.array_equal(_bits(found[name]), _bits(tensor)) for name, tensor in new.items()
    )
    row = {"what": "fewbits, exact", "bytes": len(data), "cpu_seconds": seconds}
    return _told(row | {"apply_cpu_seconds": applying, "exact": exact})


def _whole(new: Mapping[str, Tensor], what: str) -> dict[str, Any]:
    """Return the bytes of a state dict under the recipe "lossless"."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is quantized
        data, seconds = _timed(
            lambda: fewbits.compress(_module(new), "lossless").encode("fast", threads=1)
        )
    return _told({"what": what, "bytes": len(data), "cpu_seconds": seconds})


def _facts(new: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Any]:
    changed = sum(int((new[name] != base[name]).sum()) for name in new)
    values = sum(tensor.numel() for tensor in new.values())
    whole = sum(tensor.nbytes for tensor in new.values())
    return {"values": values, "changed": changed, "share": changed / values, "weights_bytes": whole}


def _xor(new: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> bytes:
    return b"".join((_bits(new[name]) ^ _bits(base[name])).tobytes() for name in new)


def tuned(kind: str, seed: int, base: Mapping[str, Tensor], *, brief: bool) -> dict[str, Any]:
    """Measure the exact delta of one fine-tuned checkpoint, and the XOR under general coders."""
    new = load_file(checkpoint(kind, seed))
    rows = [_exact(new, base), _packed(_xor(new, base), *ZSTD, "-3")]
    if not brief:
        rows.append(_whole(new, "the whole checkpoint, lossless"))
        slow = (ZSTD_SLOW, XZ) if seed == 0 else ()
        rows += [_packed(_xor(new, base), *command) for command in slow]
    some, old = ({n: t for n, t in of.items() if n.startswith(PART)} for of in (new, base))
    part = [_exact(some, old)]
    part += [_packed(_xor(some, old), *command) for command in (ZSTD_SLOW, XZ)]
    facts = {"name": f"{kind}, seed {seed}", "trained": told_of(kind, seed), **_facts(new, base)}
    one = {"tensors": f"{PART}*", **_facts(some, old), "rows": part}
    return {**facts, "rows": rows, "part": one}


def at_a_rate(
    kind: str, seed: int, base: Mapping[str, Tensor], methods: Mapping[str, Any], windows: int
) -> list[dict[str, Any]]:
    """Measure deltas at a rate: their bytes, and the perplexity of the network that they give."""
    network, tokens = smollm2(torch.float32), held_out(windows, LENGTH)

    def score(state: Mapping[str, Tensor]) -> float:
        network.load_state_dict(state, strict=False)
        return perplexity(network, tokens)

    new = load_file(checkpoint(kind, seed))
    both = (("base", base), ("fine-tuned", new))
    rows = [_told({"what": what, "perplexity": score(state)}) for what, state in both]
    pairs = zip(range(CALIBRATION), draws(128, seed + 1000), strict=False)
    batches = [{"input_ids": tokens} for _, tokens in pairs]
    for what, method in methods.items():
        model = smollm2(torch.bfloat16)
        model.load_state_dict(new, strict=False)
        needs = getattr(method, "capabilities", None)
        data = batches if needs is None or needs.needs_data else None
        coded, seconds = _timed(lambda m=model, h=method, d=data: _compressed(m, h, d, base))
        row = {"what": what, "bytes": len(coded.encode("balanced", threads=1))}
        row |= {"compress_cpu_seconds": seconds, "notes": list(coded.notes)}
        rows.append(_told(row | {"perplexity": score(coded.state_dict())}))
    return rows


def _compressed(model: nn.Module, method: Any, data: Any, base: Mapping[str, Tensor]) -> Any:
    return fewbits.compress(model, method, data, base=base, threads=1)


def adapter(seed: int) -> dict[str, Any]:
    """Measure the adapter of one run, exactly and at errors of its products."""
    path = adapter_of(seed) / "adapter_model.safetensors"
    state = load_file(path)
    rows = [_whole(state, "fewbits, lossless")]
    rows.append(_packed(path.read_bytes(), *ZSTD_SLOW))
    for bits in (3, 4, 6):
        network = nn.Module()
        for place, tensor in enumerate(state.values()):
            layer = nn.Linear(*reversed(tensor.shape), bias=False)
            layer.weight.data = tensor
            network.add_module(str(place), layer)
        coded = fewbits.compress(network, fewbits.Nearest(bits=bits))
        found = dict(zip(state, coded.state_dict().values(), strict=True))
        row = {"what": f"nearest, {bits} bits", "bytes": len(coded.encode(threads=1))}
        rows.append(_told(row | {"error": _error(found, state)}))
    for error in (*ERRORS, *(row["error"] for row in rows if "error" in row)):
        coded, seconds = _timed(lambda e=error: fewbits.compress_adapter(state, error=e))
        row = {"what": "fewbits, lora", "bytes": len(coded.encode(threads=1))}
        row |= {"error": _error(coded.state_dict(), state), "cpu_seconds": seconds}
        rows.append(_told(row))
    return {"name": f"adapter, seed {seed}", "file_bytes": path.stat().st_size, "rows": rows}


def _error(found: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> float:
    """Return the root mean square error of all products, relative to them."""
    lost = size = 0.0
    for name in (name for name in state if ".lora_A." in name):
        other = name.replace(".lora_A.", ".lora_B.")
        whole = state[other].double() @ state[name].double()
        lost += float((found[other].double() @ found[name].double() - whole).square().sum())
        size += float(whole.square().sum())
    return float((lost / size) ** 0.5)


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
    rows = [_exact(new, base), _packed(b"".join(pairs), *ZSTD_SLOW)]
    rows[-1]["what"] = "(index as the gap to the one before, value), zstd -19"
    return {"name": f"{share:.0%} of the weights", "seed": seed, **_facts(new, base), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--slope", type=float, nargs="*", default=[], help="of RDOQ, seed 0")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="for the perplexity")
    parser.add_argument("--brief", action="store_true", help="leave out what takes longest")
    parser.add_argument("--record", type=Path, help="folder for the record")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    base = load_file(smollm2_folder() / "model.safetensors")
    _exact({"w": base[f"{PART}mlp.up_proj.weight"]}, {"w": base[f"{PART}mlp.gate_proj.weight"]})
    runs = [(kind, seed) for seed in chosen.seed for kind in KINDS if is_done(kind, seed)]
    methods: dict[str, Any] = {f"nearest, {bits} bits": _nearest(bits) for bits in (2, 3)}
    methods |= {f"rdoq, slope {slope:g}": fewbits.RDOQ(slope=slope) for slope in chosen.slope}
    cases = [] if chosen.brief else [sparse(base, 0.01, 0)]
    for kind, seed in runs:
        case = tuned(kind, seed, base, brief=chosen.brief)
        if seed == 0:
            case["at_a_rate"] = at_a_rate(kind, seed, base, methods, chosen.windows)
        cases += [case, adapter(seed)] if kind == "lora" else [case]
    write(
        "deltas",
        model="SmolLM2-135M-Instruct, bfloat16",
        data="Tiny Shakespeare",
        folder=chosen.record,
        held_out=[chosen.windows, LENGTH],
        cases=cases,
    )


def _nearest(bits: int) -> fewbits.Nearest:
    return fewbits.Nearest(bits=bits, radius="mse")


if __name__ == "__main__":
    main()
