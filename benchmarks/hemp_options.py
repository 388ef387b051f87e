"""HEMP's published form with one thing changed at a time, and pruned starts, on digits.

    python benchmarks/hemp_options.py [--quick] [--minutes 60]

Networks, budget and measures are those of ``hemp_form.py`` (15 epochs, 7 levels, order 1, whole
files with the effort "smallest"; three seeds of the network and the training; digits-mlp trained
here for 60 epochs, digits-cnn for 16). Each variant has a control of its own, at strength 0, and
two strengths, of ``rate_weight`` unless noted:

- "published": continuous weights compute, Lloyd-Max levels, insensitivity, crossing rule, pull;
- "not insensitive", "even levels", "histogram per tensor", "levels by rate", "refitted" (once an
  epoch), "levels compute": one setting changed;
- "one derivative": the entropy's ordinary derivative, where weights on a level have none below;
- "no crossing rule": ``slope``, the bits in the loss, moves the weights through the optimizer
  instead; "no pull": the same, and nothing draws weights to their levels (the crossing rule is in
  units of the pull, and ends with it);
- "cnn": digits-cnn in the published form; "cnn, pruned": half of its weights, the smallest, are
  zero before training, and stay zero; both with order 2 as well, and with three strengths.

``at_equal_bytes`` compares each variant with the published form of its network, seed by seed: the
difference in accuracy, interpolated in the logarithm of the bytes, in the middle of the sizes that
both reach. Accuracy is that of the reloaded file on the 449 test images, which decide nothing. Any
option but --minutes explores: the record goes to .data/.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor

from fewbits.methods import HEMP
from fewbits.methods.trained.descent import Descent
from fewbits.ops.rate_distortion.soft_entropy import Brackets, Histogram, entropy_gradient
from fewbits.recipe.training_config import Training
from hemp_form import EPOCHS, LEVELS, RATE, measured_form
from images import CACHE
from kept import kept_runs
from record import Run, write
from training_case import digits_case

_PRICES, _SLOPES, _OF_CNN = (0.0, 0.3, 0.6), (0.0, 5e-5, 2e-4), (0.0, 0.6, 1.3, 2.0)
_STEPS = 11  # of an epoch


@dataclass(frozen=True)
class _Variant:
    """Settings beside the strength; ``slope`` instead of ``rate_weight`` if ``in_loss``."""

    settings: dict[str, Any] = field(default_factory=dict)
    in_loss: bool = False
    network: str = "digits-mlp"
    prune: float = 0.0
    patched: bool = False
    beside: str = "published"

    @property
    def strengths(self) -> tuple[float, ...]:
        if self.network == "digits-cnn":
            return _OF_CNN
        return _SLOPES if self.in_loss else _PRICES

    def method(self, strength: float) -> HEMP:
        by = {"slope" if self.in_loss else "rate_weight": strength}
        return HEMP(levels=LEVELS, **self.settings, **by)


_CNN = {"network": "digits-cnn", "beside": "cnn"}
VARIANTS = {
    "published": _Variant(),
    "not insensitive": _Variant({"insensitive": False}),
    "even levels": _Variant({"spacing": "even"}),
    "histogram per tensor": _Variant({"pool": "tensor"}),
    "levels by rate": _Variant({"assign": "rate"}),
    "refitted": _Variant({"refit": _STEPS}),
    "levels compute": _Variant({"forward": "quantized"}),
    "one derivative": _Variant(patched=True),
    "no crossing rule": _Variant({"forward": "continuous"}, in_loss=True),
    "no pull": _Variant({"forward": "continuous", "pull": 0.0}, in_loss=True),
    "cnn": _Variant(**_CNN),
    "cnn, order 2": _Variant({"order": 2}, **_CNN),
    "cnn, pruned": _Variant(prune=0.5, **_CNN),
    "cnn, pruned, order 2": _Variant({"order": 2}, prune=0.5, **_CNN),
}


@dataclass(frozen=True)
class _Job:
    variant: str
    strength: float
    seed: int
    quick: bool


def _one_derivative(
    groups: Sequence[Brackets], tables: Sequence[Tensor], histogram: Histogram
) -> list[Descent]:
    """Stand in for ``descents``: the derivative of the cell that the weight is counted in."""
    found = []
    for group, levels, slope in zip(
        groups, tables, entropy_gradient(groups, histogram), strict=True
    ):
        upper = (group.lower + 1).clamp_max(len(levels) - 1)
        goal = levels[group.lower].where(slope > 0, levels[upper])
        found.append(Descent(slope, group.width, goal))
    return found


def _patched(variant: _Variant) -> AbstractContextManager[Any]:
    if not variant.patched:
        return nullcontext()
    return mock.patch("fewbits.methods.trained.hemp.hemp.descents", _one_derivative)


def _run(job: _Job) -> dict[str, Any]:
    variant = VARIANTS[job.variant]
    trained = 60 if variant.network == "digits-mlp" else 16
    case = digits_case(job.variant, variant.network, 2 if job.quick else trained, job.seed)
    epochs = 1 if job.quick else EPOCHS
    training = Training(
        epochs=epochs, hold_out=0, learning_rate=RATE, relative_clip=0, prune=variant.prune
    )
    with _patched(variant):
        return measured_form(case, f"{job.strength:g}", variant.method(job.strength), training)


def _summary(found: Sequence[tuple[_Job, Any]]) -> list[dict[str, Any]]:
    """Return means over the seeds."""
    groups: dict[tuple[str, float], list[Any]] = {}
    for job, result in found:
        groups.setdefault((job.variant, job.strength), []).append(result)
    return [
        {
            "variant": variant,
            "strength": strength,
            "seeds": len(group),
            "file_bytes": statistics.mean(r["run"]["file_bytes"] for r in group),
            "accuracy": statistics.mean(r["run"]["accuracy"]["test"] for r in group),
            "float": statistics.mean(r["float"] for r in group),
            "order_bits": np.mean([r["order_bits"] for r in group], axis=0).tolist(),
            "by_seed": [[r["run"]["file_bytes"], r["run"]["accuracy"]["test"]] for r in group],
        }
        for (variant, strength), group in groups.items()
    ]


def _at_equal_bytes(found: Sequence[tuple[_Job, Any]]) -> list[dict[str, Any]]:
    """Return by how much each variant is more accurate than the published form, at equal bytes."""
    curves: dict[tuple[str, int], dict[int, float]] = {}
    for job, result in found:
        run = result["run"]
        own = curves.setdefault((job.variant, job.seed), {})
        own[run["file_bytes"]] = run["accuracy"]["test"]
    rows = []
    for name, variant in VARIANTS.items():
        pairs = [
            (curve, curves[variant.beside, seed])
            for (own, seed), curve in curves.items()
            if own == name != variant.beside and (variant.beside, seed) in curves
        ]
        gains = [gain for gain in (_gain(*pair) for pair in pairs) if gain is not None]
        if gains:
            spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
            gain = statistics.mean(gains)
            rows.append({"variant": name, "gain": gain, "deviation": spread, "seeds": len(gains)})
    return rows


def _gain(ours: dict[int, float], theirs: dict[int, float]) -> float | None:
    """Return the difference in accuracy where two curves overlap; None where they do not."""
    low, high = max(min(ours), min(theirs)), min(max(ours), max(theirs))
    if low > high:
        return None
    size = (np.log(low) + np.log(high)) / 2
    values = [
        np.interp(size, *zip(*((np.log(k), v) for k, v in sorted(curve.items())), strict=True))
        for curve in (ours, theirs)
    ]
    return float(values[0] - values[1])


def main() -> None:
    """Run everything, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so long")
    parser.add_argument("--quick", action="store_true", help="seed 0, an epoch")
    options = parser.parse_args()
    explores = vars(options) != vars(parser.parse_args([])) | {"minutes": options.minutes}
    jobs = [
        _Job(name, strength, seed, options.quick)
        for seed in range(1 if options.quick else 3)
        for name in options.variants
        for strength in VARIANTS[name].strengths
    ]
    results = kept_runs("hemp_options", _run, jobs, minutes=options.minutes)
    found = [(job, result) for job, result in zip(jobs, results, strict=True) if result is not None]
    summary, equal = _summary(found), _at_equal_bytes(found)
    for row in summary:
        told = f"{row['variant']:22} {row['strength']:<6g} {row['file_bytes']:8,.0f} bytes"
        print(f"{told} {row['accuracy']:6.2f} %")
    for row in equal:
        print(f"{row['variant']:22} {row['gain']:+.2f} +- {row['deviation']:.2f} points")
    write(
        "hemp_options",
        folder=CACHE if explores else None,
        model="digits-mlp and digits-cnn, trained here for 60 and 16 epochs",
        data="scikit-learn digits: 1,348 training images, 449 test images",
        summary=summary,
        at_equal_bytes=equal,
        missing=len(jobs) - len(found),
        runs=[Run(**result["run"]) for _, result in found],
    )


if __name__ == "__main__":
    main()
