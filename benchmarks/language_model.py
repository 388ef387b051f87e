"""SmolLM2-135M beside other tools: whole-file bytes and perplexity, each case in its own process.

    python benchmarks/language_model.py --jobs 2
    python benchmarks/language_model.py --cases 'gptq-3*,hqq-*' --minutes 60
    python benchmarks/language_model.py --cases smallest-slope-0.02,smallest-bits-2.75

Cases are the words that ``compared.py`` and ``peers.py`` explain. Calibration: 16 x 512 tokens of
the WikiText-2 validation text. Evaluation: the first 16 windows of 1,024 tokens of the test text,
each on its own, in float32; ``--sequences`` and ``--windows`` take more of both. Peers get the
checkpoint's bfloat16 weights; fewbits gets the same values in float32 and stores what it does not
quantize in 16 bits. Tokenizers are in no file.

The linear weights were published on grids of 4 bits (GGUF Q4_1): figures at 4 bits and more say
nothing about other networks. ``sizes_only`` are files that llama.cpp would write and that nothing
here can: bytes of their tensors by the type tables of the gguf package, without an accuracy.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import peers_gguf
from compared import add_options, chosen, compare, interpolated, measure, measure_slopes
from packaged import AbsentError, library, smollm2, smollm2_folder, smollm2_tokens
from peers import GPTQ_ELSEWHERE, PEERS

METHODS = ("nearest", "gptq", "qronos", "gpfq")
SLOPES = (7e-10, 2.5e-9, 8e-9, 2.5e-8)
TARGET_BITS = (4, 3.25, 3, 2.5, 2)
START = 2.5e-9  # the slope that searches begin with
LENGTH, WINDOW = 512, 1024
SLICE = 256  # tokens whose logits are held at once
CASES = (
    "float",
    "smallest-slope-" + "+".join(f"{slope:g}" for slope in SLOPES),
    *(f"{m}-{bits}{group}" for m in METHODS for bits in (4, 3) for group in ("", "-g64")),
    *(name for name in PEERS if name != "quanto-int8"),
)


@dataclass(frozen=True)
class Job:
    """A case with its data; ``layers`` cuts the network, 0 for all of it."""

    case: str
    sequences: int
    windows: int
    seed: int
    effort: str
    layers: int


def _build(dtype: torch.dtype, layers: int) -> nn.Module:
    model = smollm2(dtype)
    if layers:
        model.model.layers = model.model.layers[:layers]
        model.config.num_hidden_layers = layers
    return model


def _forward(model: nn.Module, tokens: Tensor) -> Any:
    return model(input_ids=tokens, use_cache=False)  # with its logits under that name


@torch.no_grad()
def perplexity(model: nn.Module, windows: int) -> dict[str, Any]:
    """Return the perplexity of the first windows of the test text; ``packaged.perplexity`` agrees.

    The logits of a slice of tokens are held at a time. The first token of a window is not
    predicted.
    """
    total = 0.0
    tokens = smollm2_tokens("evaluation", windows, WINDOW)
    for window in tokens:
        states = model.model(input_ids=window[None], use_cache=False).last_hidden_state[0, :-1]
        for part, wanted in zip(states.split(SLICE), window[1:].split(SLICE), strict=True):
            logits = model.lm_head(part)
            total += float(functional.cross_entropy(logits, wanted, reduction="sum"))
    return {"perplexity": math.exp(total / (tokens.shape[0] * (tokens.shape[1] - 1)))}


def _calibration(job: Job) -> tuple[Tensor, ...]:
    return smollm2_tokens("calibration", job.sequences, LENGTH, seed=job.seed).split(1)


def _one(job: Job) -> dict[str, Any]:
    if "+" in job.case:
        return measure_slopes(
            job,
            partial(_build, layers=job.layers),
            lambda: _calibration(job),
            partial(perplexity, windows=job.windows),
            lambda row: print(_line(row), flush=True),
            forward=_forward,
        )
    row = measure(
        job,
        partial(_build, layers=job.layers),
        torch.bfloat16,
        lambda: _calibration(job),
        partial(perplexity, windows=job.windows),
        name="language_model",
        raw_dtype="bfloat16",
        start=START,
        forward=_forward,
        float_bytes=(smollm2_folder() / "model.safetensors").stat().st_size,
    )
    print(_line(row), flush=True)
    return row


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['case']:22} {row['file_bytes']:12,} bytes, {row['bits_per_parameter']:6.3f} bits, "
        f"perplexity {row['perplexity']:9.3f}; {row.get('compress_cpu_seconds', 0):.0f} CPU s, "
        f"evaluated in {row['evaluate_cpu_seconds']:.0f}, peak {row.get('peak_mb', 0):.0f} MB, "
        f"{row.get('notes', 0)} notes"
    )


def _sizes_only(model: nn.Module) -> dict[str, Any]:
    """Return the sizes of llama.cpp's mixes that the gguf package cannot quantize."""
    try:
        library("gguf", "gguf")
    except AbsentError as error:
        return {"absent": str(error)}
    count = sum(p.numel() for p in model.parameters())
    sizes = {mix: peers_gguf.mix_bytes(model, mix) for mix in peers_gguf.MIXES}
    return {
        mix: {"tensor_bytes": size, "bits_per_parameter": 8 * size / count}
        for mix, size in sizes.items()
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--sequences", type=int, default=16, help="of 512 calibration tokens")
    parser.add_argument("--windows", type=int, default=16, help="of 1,024 evaluation tokens")
    parser.add_argument("--slopes", type=float, nargs="*", default=[], help="more of `smallest`")
    parser.add_argument("--target-bits", type=float, nargs="*", default=[], help="searches")
    parser.add_argument("--layers", type=int, default=0, help="keep only the first ones")
    options = parser.parse_args()
    if options.quick:
        options.sequences, options.windows, options.layers = 2, 2, 2
    return options


def main() -> None:
    options = _options()
    cases = chosen(CASES, options.cases)
    cases += [f"smallest-slope-{slope:g}" for slope in options.slopes]
    cases += [f"smallest-bits-{bits:g}" for bits in options.target_bits]
    shared = (options.sequences, options.windows, options.seed, options.effort, options.layers)
    jobs = [Job(case, *shared) for case in dict.fromkeys(cases)]
    model = _build(torch.bfloat16, options.layers)
    count = sum(p.numel() for p in model.parameters())
    sizes = [bits * count / 8 for bits in TARGET_BITS]
    compare(
        "language_model",
        _one,
        jobs,
        options,
        usual=Job("", 16, 16, 0, "balanced", 0),
        more=lambda rows: {"interpolated": interpolated(rows, "perplexity", sizes)},
        model=f"SmolLM2-135M-Instruct, {count:,} parameters, bfloat16"
        + (f", the first {options.layers} layers" if options.layers else ""),
        data=f"WikiText-2: {options.sequences} x {LENGTH} tokens of the validation text calibrate, "
        f"the first {options.windows} x {WINDOW} of the test text evaluate; float32, one thread",
        sizes_only=_sizes_only(model),
        gptq_elsewhere=GPTQ_ELSEWHERE,
    )


if __name__ == "__main__":
    main()
