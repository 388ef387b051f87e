"""HEMP with default settings after every compressed start, on scikit-learn's digits.

    python benchmarks/hemp_starts.py [--quick] [--minutes 60]

For each network, start and seed (of the float network, the calibration and the training):

- "before": the compressed network that training starts from;
- "hemp": ``fewbits train`` with defaults from there, 6 epochs; from "float" 10, as --start float;
- "control": the same with the entropy term off: ``HEMP(slope=0)``;
- "last epoch": HEMP again without held-out samples: nothing chooses an epoch or falls back;
- from "float" also the paper's form, ``HEMP(rate_weight=0.4)``, and both forms with 3 levels;
- "untrained": the recipe `smallest` without training, at the size of "hemp", for the starts
  "float" and "smallest".

Files hold no metadata, whose length says nothing of a method. Accuracy is that of the reloaded file
on the 449 test images, which neither train, nor calibrate, nor select. A result is worse than its
start if it is beaten in bytes or accuracy and better in neither; ``verdicts`` say so for means over
the seeds. Any option but --minutes and --earlier explores: the record goes to .data/.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import fewbits
from fewbits.methods import GPFQ, HEMP, PWFN, RDOQ, Transform
from fewbits.recipe.training_config import Training
from images import CACHE
from kept import kept_runs
from networks import top1
from record import Run, write
from training_case import Case, digits_case

NETWORKS = ("digits-mlp", "digits-cnn")
STARTS: dict[str, Any] = {
    "float": None,
    "transform": Transform(),
    "transform, slope 3e-3": Transform(slope=3e-3),
    "pwfn": PWFN(),
    "gpfq, 2 bits": GPFQ(bits=2),
    "smallest": "smallest",
    "rdoq, slope 3e-3": RDOQ(slope=3e-3),
    "rdoq, trellis": RDOQ(quantizer="trellis"),
}
COMPARED = ("float", "smallest")
EPOCHS = 6
_OTHERS = {
    "published form": HEMP(rate_weight=0.4),
    "3 levels": HEMP(levels=3),
    "published form, 3 levels": HEMP(levels=3, rate_weight=0.4),
}
NOISE = 0.3  # points: two standard errors where 4 of the 3 x 449 answers change sides
BYTES_NOISE = 0.001  # of the bytes: a byte or two of a file of 2 kB


@dataclass(frozen=True)
class _Job:
    network: str
    start: str
    seed: int
    quick: bool


def compressed(case: Case, name: str, training: Training) -> fewbits.CodedModel | None:
    """Return a start of :data:`STARTS`; ``training`` is that of PWFN, the only one that trains."""
    method = STARTS[name]
    if method is None:
        return None
    return case.trained(method, training) if method == PWFN() else case.untrained(method)


def parts(case: Case, name: str, training: Training) -> list[Run]:
    """Run the start, HEMP after it, its control, and HEMP without a choice of epochs."""
    runs = []
    if case.start is not None:
        runs.append(case.run("before", lambda: case.start, STARTS[name]))
    runs.append(case.run("hemp", lambda: case.trained(HEMP(), training), HEMP()))
    plain = HEMP(slope=0.0)
    runs.append(case.run("control", lambda: case.trained(plain, training), plain))
    last = replace(training, hold_out=0)
    runs.append(case.run("last epoch", lambda: case.trained(HEMP(), last), HEMP()))
    for part, method in _OTHERS.items() if case.start is None else ():
        runs.append(case.run(part, partial(case.trained, method, training), method))
    return runs


def _run(job: _Job) -> dict[str, Any]:
    """Run all parts of a job."""
    title = f"{job.network} | {job.start}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a start loses is in the notes
        case = digits_case(title, job.network, 2 if job.quick else 16, job.seed)
        case = replace(case, start=compressed(case, job.start, Training()))
        usual = Training() if case.start is None else Training(epochs=EPOCHS)
        runs = parts(case, job.start, Training(epochs=1) if job.quick else usual)
        if job.start in COMPARED:
            size = next(run.file_bytes for run in runs if run.method.endswith("| hemp"))
            smallest = partial(case.untrained, "smallest", target_bytes=size, metadata=False)
            runs.append(case.run("untrained", smallest, "smallest"))
    return {"runs": [asdict(run) for run in runs], "float": top1(case.model, *case.test)}


def summary_of(runs: list[Run], floats: dict[str, float]) -> list[dict[str, Any]]:
    """Return means over the seeds, and the verdicts."""
    table: dict[tuple[str, str], dict[str, list[Run]]] = {}
    for run in runs:
        network, start, part = run.method.split(" | ")
        table.setdefault((network, start), {}).setdefault(part, []).append(run)
    rows = []
    for (network, start), parts in table.items():
        means = {
            part: {
                "file_bytes": statistics.mean(run.file_bytes for run in group),
                "accuracy": statistics.mean(run.accuracy["test"] for run in group),
                "by_seed": [[run.file_bytes, run.accuracy["test"]] for run in group],
            }
            for part, group in parts.items()
        }
        seeds = len(parts["hemp"])
        compared = [(part, "before") for part in ("hemp", "control", "last epoch")]
        compared.append(("hemp", "untrained"))
        verdicts = {
            f"{part} is worse than {other}": _worse(means[part], means[other])
            for part, other in compared
            if other in means
        }
        about = {"network": network, "start": start, "seeds": seeds}
        rows.append({**about, "float": floats[network], "means": means, "verdicts": verdicts})
    return rows


def show(summary: list[dict[str, Any]]) -> None:
    """Print the means and what is worse than what."""
    for row in summary:
        print(row["network"], "|", row["start"])
        for part, means in row["means"].items():
            print(f"    {part:12} {means['file_bytes']:9,.0f} bytes {means['accuracy']:6.2f} %")
        print("   ", *(name for name, found in row["verdicts"].items() if found), sep="  ")


def _worse(after: dict[str, Any], before: dict[str, Any]) -> bool:
    """Return whether a point is beaten beyond noise in one respect, and better in none."""
    more = after["file_bytes"] / before["file_bytes"] - 1
    lost = before["accuracy"] - after["accuracy"]
    beaten = more > BYTES_NOISE or lost > NOISE
    return bool(beaten and more >= -BYTES_NOISE and lost >= 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=list(STARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so long")
    parser.add_argument("--earlier", nargs="*", default=[], help="commits whose runs are taken too")
    parser.add_argument("--quick", action="store_true", help="seed 0, an epoch")
    options = parser.parse_args()
    if options.quick:
        options.seeds = [0]
    free = {"minutes": options.minutes, "earlier": options.earlier}
    standard = vars(parser.parse_args([])) | free
    options.explores = vars(options) != standard
    return options


def main() -> None:
    """Run everything, and write the record."""
    options = _options()
    jobs = [
        _Job(network, start, seed, options.quick)
        for network, seed, start in product(options.networks, options.seeds, options.starts)
    ]
    found = kept_runs("hemp_starts", _run, jobs, minutes=options.minutes, earlier=options.earlier)
    done = [(job, result) for job, result in zip(jobs, found, strict=True) if result is not None]
    runs = [Run(**run) for _, result in done for run in result["runs"]]
    by_network: dict[str, dict[int, float]] = {}
    for job, result in done:
        by_network.setdefault(job.network, {})[job.seed] = result["float"]
    floats = {name: statistics.mean(found.values()) for name, found in by_network.items()}
    summary = summary_of(runs, floats)
    show(summary)
    write(
        "hemp_starts",
        folder=CACHE if options.explores else None,
        model="digits-cnn and digits-mlp, trained here",
        data="scikit-learn digits: 1,348 training images, a tenth held out; 449 test images",
        float_accuracy=floats,
        commits=sorted({result["commit"] for _, result in done}),
        summary=summary,
        missing=len(jobs) - len(done),
        runs=runs,
    )


if __name__ == "__main__":
    main()
