"""HEMP's published form, beside bits in the loss and no entropy term, orders 1 to 3, on digits.

    python benchmarks/hemp_form.py [--quick] [--minutes 60]

One network (digits-mlp, trained here for 60 epochs), one training (15 epochs, the last one kept;
7 levels), three seeds of both. Only the entropy term differs within a form:

- "published": the continuous weights compute, Lloyd-Max levels; after each step the entropy's
  gradient, scaled by insensitivity and the crossing rule (``rate_weight``), and the pull;
- "loss": levels compute, even levels with trained steps; ``slope`` times the bits is in the loss.

Strength 0 is the control of each form. Files are written with the effort "smallest", whose codec
`mix` models neighbouring weights; ``order_bits`` are bits per weight of ideal coders of singles,
pairs and triples, without the cost of their tables. ``at_equal_bytes`` interpolates each order's
accuracy between its strengths, at sizes that all orders of a form reach. Accuracy is that of the
reloaded file on the 449 test images, which decide nothing. Any option but --minutes explores: the
record goes to .data/.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np

import fewbits
from fewbits.coded import RawTensor
from fewbits.methods import HEMP
from fewbits.recipe.training_config import Training
from images import CACHE
from kept import kept_runs
from networks import top1
from record import Run, write
from training_case import Case, digits_case

FORMS = ("published", "loss")
ORDERS = (1, 2, 3)
STRENGTHS = {"published": (0.0, 0.3, 0.6), "loss": (0.0, 5e-5, 2e-4)}
EPOCHS, RATE = 15, 0.03
LEVELS = 7


@dataclass(frozen=True)
class _Job:
    form: str
    order: int
    strength: float
    seed: int
    quick: bool

    @property
    def method(self) -> HEMP:
        if self.form == "published":
            return HEMP(levels=LEVELS, order=self.order, rate_weight=self.strength)
        return HEMP(
            levels=LEVELS,
            order=self.order,
            spacing="even",
            forward="quantized",
            slope=self.strength,
            insensitive=False,
        )


def _run(job: _Job) -> dict[str, Any]:
    title = f"{job.form} | order {job.order}"
    case = digits_case(title, "digits-mlp", 2 if job.quick else 60, job.seed)
    training = Training(
        epochs=1 if job.quick else EPOCHS, hold_out=0, learning_rate=RATE, relative_clip=0
    )
    return measured_form(case, f"{job.strength:g}", job.method, training)


def measured_form(case: Case, part: str, method: HEMP, training: Training) -> dict[str, Any]:
    """Train one form from the float weights; measure file, accuracy and bits of tuples."""
    made: list[fewbits.CodedModel] = []

    def work() -> fewbits.CodedModel:
        made.append(case.trained(method, training, effort="smallest", raw_dtype="float16"))
        return made[0]

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # an order that was lowered
        run = case.run(part, work, method)
    floats = top1(case.model, *case.test)
    return {"run": asdict(run), "order_bits": _order_bits(made[0]), "float": floats}


def _order_bits(coded: fewbits.CodedModel) -> list[float]:
    """Return bits per weight of runs of 1, 2 and 3 weights, counted over the whole network."""
    indices = [_aligned(t) for t in coded.tensors.values() if not isinstance(t, RawTensor)]
    found = []
    for order in ORDERS:
        whole = [index[: len(index) // order * order].reshape(-1, order) for index in indices]
        _, counts = np.unique(np.concatenate(whole), axis=0, return_counts=True)
        chances = counts / counts.sum()
        found.append(float(-(chances * np.log2(chances)).sum()) / order)
    return found


def _aligned(tensor: Any) -> np.ndarray:
    """Return indices in row order, 0 where the value is zero."""
    index, values = tensor.index.reshape(-1), tensor.dequantize().reshape(-1)
    zero = index[values == 0]
    return index - (zero[0] if len(zero) else 0)


def _summary(found: Sequence[tuple[_Job, Any]]) -> list[dict[str, Any]]:
    """Return means over the seeds."""
    groups: dict[tuple[str, int, float], list[Any]] = {}
    for job, result in found:
        groups.setdefault((job.form, job.order, job.strength), []).append(result)
    return [
        {
            "form": form,
            "order": order,
            "strength": strength,
            "seeds": len(group),
            "file_bytes": statistics.mean(r["run"]["file_bytes"] for r in group),
            "accuracy": statistics.mean(r["run"]["accuracy"]["test"] for r in group),
            "order_bits": np.mean([r["order_bits"] for r in group], axis=0).tolist(),
            "by_seed": [[r["run"]["file_bytes"], r["run"]["accuracy"]["test"]] for r in group],
        }
        for (form, order, strength), group in groups.items()
    ]


def _at_equal_bytes(summary: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the accuracy of each order at sizes that all orders of a form reach."""
    rows = []
    for form in FORMS:
        curves = {}
        for order in ORDERS:
            points = [r for r in summary if (r["form"], r["order"]) == (form, order)]
            curves[order] = sorted((r["file_bytes"], r["accuracy"]) for r in points)
        if not all(curves.values()):
            continue
        low = max(curve[0][0] for curve in curves.values())
        high = min(curve[-1][0] for curve in curves.values())
        for share in (0.25, 0.5, 0.75):
            size = low * (high / low) ** share
            found = {
                f"order {order}": float(np.interp(np.log(size), *_logs(curve)))
                for order, curve in curves.items()
            }
            rows.append({"form": form, "file_bytes": size, "accuracy": found})
    return rows


def _logs(curve: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [float(np.log(size)) for size, _ in curve], [accuracy for _, accuracy in curve]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so long")
    parser.add_argument("--quick", action="store_true", help="seed 0, an epoch")
    options = parser.parse_args()
    if options.quick:
        options.seeds = [0]
    standard = vars(parser.parse_args([])) | {"minutes": options.minutes}
    options.explores = vars(options) != standard
    return options


def main() -> None:
    """Run everything, and write the record."""
    options = _options()
    jobs = [
        _Job(form, 1 if not strength else order, strength, seed, options.quick)
        for seed, form in product(options.seeds, options.forms)
        for strength, order in product(STRENGTHS[form], ORDERS)
    ]
    jobs = list(dict.fromkeys(jobs))  # without an entropy there is no order
    results = kept_runs("hemp_form", _run, jobs, minutes=options.minutes)
    found = [(job, result) for job, result in zip(jobs, results, strict=True) if result is not None]
    controls = [(replace(j, order=n), r) for j, r in found if not j.strength for n in (2, 3)]
    summary = _summary(found)
    equal = _at_equal_bytes(_summary([*found, *controls]))
    for row in summary:
        bits = ", ".join(f"{value:.3f}" for value in row["order_bits"])
        print(
            f"{row['form']:10} order {row['order']} strength {row['strength']:<6g} "
            f"{row['file_bytes']:8,.0f} bytes {row['accuracy']:6.2f} %  bits {bits}"
        )
    for row in equal:
        told = {name: round(value, 2) for name, value in row["accuracy"].items()}
        print(f"{row['form']} at {row['file_bytes']:,.0f} bytes: {told}")
    write(
        "hemp_form",
        folder=CACHE if options.explores else None,
        model="digits-mlp, trained here for 60 epochs",
        data="scikit-learn digits: 1,348 training images, 449 test images",
        float_accuracy=statistics.mean(result["float"] for _, result in found),
        summary=summary,
        at_equal_bytes=equal,
        missing=len(jobs) - len(found),
        runs=[Run(**result["run"]) for _, result in found],
    )


if __name__ == "__main__":
    main()
