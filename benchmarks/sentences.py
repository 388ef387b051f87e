"""all-MiniLM-L6-v2 beside other tools: whole-file bytes, and how well embeddings are kept.

    python benchmarks/sentences.py --jobs 2
    python benchmarks/sentences.py --cases 'gptq-*,smallest-bytes-*'

Cases are the words that ``compared.py`` and ``peers.py`` explain; ``smallest-drop-0.001`` searches
for the smallest file with a mean cosine of 0.999 on sentences that select. Calibration: 256
sentences of the WikiText-2 validation text; 256 others of it select; 500 of the test text evaluate.

``cosine``: mean over the sentences of the cosine between the embedding of the file's network and
that of the float network. ``spearman``: rank correlation, over all 124,750 pairs of the sentences,
of their similarity by the one and by the other. ``bytes_at`` reads the cosine 0.999 off the cases
of slopes. All networks are float32, and lack the pooling layer, which no embedding uses.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compared import (
    add_options,
    chosen,
    compare,
    interpolated,
    measure,
    measure_slopes,
    size_at,
    spearman,
)
from packaged import minilm, minilm_embeddings, minilm_sentences

Batch = dict[str, Tensor]

SLOPES = (3e-11, 1e-10, 3e-10, 1e-9, 1.7e-9, 3e-9)
BYTES = (9_400_000, 7_000_000)
REACHED = 0.999
START = 2e-9  # the slope that searches begin with
CASES = (
    "float",
    *(f"{method}-4" for method in ("nearest", "gptq", "gpfq", "qronos")),
    "smallest-slope-" + "+".join(f"{slope:g}" for slope in SLOPES),
    *("quanto-int4", "quanto-int8", "hqq-4", "hqq-4-all"),
)


@dataclass(frozen=True)
class Job:
    """A case with its data, counted in sentences."""

    case: str
    calibration: int
    evaluation: int
    seed: int
    effort: str


def _build(dtype: torch.dtype) -> nn.Module:
    model = minilm().to(dtype)
    model.pooler = None
    return model


def _embedded(model: nn.Module, batch: Batch) -> Tensor:
    """Return (sentences, 384), as ``minilm_embeddings`` does, with gradients."""
    states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].to(states.dtype)
    return functional.normalize((states * mask).sum(1) / mask.sum(1))


def _cosine(model: nn.Module, batches: list[Batch], wanted: Tensor) -> float:
    return float((minilm_embeddings(model, batches) * wanted).sum(1).mean())


def _kept(model: nn.Module, batches: list[Batch]) -> dict[str, Any]:
    wanted, found = (minilm_embeddings(net, batches) for net in (_build(torch.float32), model))
    above = torch.ones(len(wanted), len(wanted), dtype=torch.bool).triu(1)
    similar = [(x.double() @ x.double().T)[above] for x in (wanted, found)]
    return {
        "cosine": float((wanted * found).sum(1).mean()),
        "cosine_min": float((wanted * found).sum(1).min()),
        "spearman": spearman(*similar),
    }


def _one(job: Job) -> dict[str, Any]:
    drawn = minilm_sentences("calibration", 2 * job.calibration, job.seed)
    evaluation = minilm_sentences("evaluation", job.evaluation)
    score = None
    if job.case.startswith("smallest-drop"):
        wanted = minilm_embeddings(_build(torch.float32), drawn[1::2])
        score = partial(_cosine, batches=drawn[1::2], wanted=wanted)
    judged = partial(_kept, batches=evaluation)
    if "+" in job.case:
        return measure_slopes(job, _build, lambda: drawn[::2], judged, _tell, forward=_embedded)
    row = measure(
        job,
        _build,
        torch.float32,
        lambda: drawn[::2],
        judged,
        name="sentences",
        raw_dtype="float16",
        start=START,
        forward=_embedded,
        score=score,
        float_bytes=4 * sum(p.numel() for p in _build(torch.float32).parameters()),
    )
    _tell(row)
    return row


def _tell(row: dict[str, Any]) -> None:
    print(
        f"{row['case']:22} {row['file_bytes']:12,} bytes, {row['bits_per_parameter']:6.3f} bits, "
        f"cosine {row['cosine']:.5f}, Spearman {row['spearman']:.5f}; "
        f"{row.get('compress_cpu_seconds', 0):.0f} CPU s, "
        f"evaluated in {row['evaluate_cpu_seconds']:.0f}, peak {row.get('peak_mb', 0):.0f} MB",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--calibration", type=int, default=256, help="sentences")
    parser.add_argument("--evaluation", type=int, default=500, help="sentences")
    options = parser.parse_args()
    if options.quick:
        options.calibration, options.evaluation = 32, 64
    return options


def main() -> None:
    options = _options()
    shared = (options.calibration, options.evaluation, options.seed, options.effort)
    jobs = [Job(case, *shared) for case in chosen(CASES, options.cases)]
    compare(
        "sentences",
        _one,
        jobs,
        options,
        usual=Job("", 256, 500, 0, "balanced"),
        more=lambda rows: {
            "bytes_at": {f"cosine {REACHED}": size_at(rows, "cosine", REACHED)},
            "interpolated": interpolated(rows, "cosine", BYTES),
        },
        model="all-MiniLM-L6-v2 without its pooling layer, float32",
        data=f"WikiText-2: {options.calibration} sentences of the validation text calibrate, "
        f"{options.evaluation} of the test text evaluate; one thread",
    )


if __name__ == "__main__":
    main()
