"""EfficientNet-Lite0 at few bits: whole-file bytes, accuracy, agreement with the float network.

    python benchmarks/imagenet.py --jobs 2
    python benchmarks/imagenet.py --cases 'gpfq-*,smallest-bytes-*'

Cases are the words that ``compared.py`` explains. Of ``imagenet_sample``, 256 images with even
labels calibrate, and the 500 with odd labels evaluate; ``agreement`` is the share of these that get
the class the float network gives them. The network has seen these images in training: read
accuracies as a drop from the float network's 87.0 %, whose standard error is 1.5 points. Its
convolutions pad inside their own forward; they are replaced by a padding and one of torch's own, so
that the inputs of the depthwise ones can be seen.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compared import add_options, chosen, compare, interpolated, measure, measure_slopes
from forward_ratios import plain_convolutions
from packaged import AbsentError, efficientnet_images, efficientnet_lite0

SLOPES = (3e-5, 1e-4, 3e-4)
FINE = 1.72e-5  # where a file has just below 2 MB
BYTES = (2_000_000, 1_600_000, 1_300_000, 1_000_000)
START = 3e-5  # the slope that searches begin with
BATCH = 16
CASES = (
    "float",
    *(f"{m}-{bits}" for bits in (4, 3) for m in ("nearest", "gpfq", "gptq", "qronos")),
    "smallest-slope-" + "+".join(f"{slope:g}" for slope in SLOPES),
    f"smallest-slope-{FINE:g}",
)


@dataclass(frozen=True)
class Job:
    """A case with its data, counted in images."""

    case: str
    calibration: int
    evaluation: int
    seed: int
    effort: str


def _build(dtype: torch.dtype) -> nn.Module:
    model = efficientnet_lite0().to(dtype)
    plain_convolutions(model)
    return model.eval()


@torch.no_grad()
def _classes(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part).argmax(1) for part in images.split(BATCH)])


def _judged(model: nn.Module, count: int) -> dict[str, Any]:
    images, labels = efficientnet_images("evaluation", None if count == 500 else count)
    found = _classes(model, images)
    wanted = _classes(_build(torch.float32), images)
    shares = {"accuracy": found == labels, "agreement": found == wanted}
    return {name: 100 * float(right.float().mean()) for name, right in shares.items()}


def _calibration(job: Job) -> tuple[Tensor, ...]:
    return efficientnet_images("calibration", job.calibration, job.seed)[0].split(BATCH)


def _one(job: Job) -> dict[str, Any]:
    judged = partial(_judged, count=job.evaluation)
    if "+" in job.case:
        return measure_slopes(job, _build, lambda: _calibration(job), judged, _tell)
    row = measure(
        job,
        _build,
        torch.float32,
        lambda: _calibration(job),
        judged,
        name="imagenet",
        raw_dtype="float16",
        start=START,
        float_bytes=4 * sum(t.numel() for t in _build(torch.float32).state_dict().values()),
    )
    _tell(row)
    return row


def _tell(row: dict[str, Any]) -> None:
    print(
        f"{row['case']:22} {row['file_bytes']:12,} bytes, {row['bits_per_parameter']:6.3f} bits, "
        f"{row['accuracy']:.1f} % right, {row['agreement']:.1f} % as the float network; "
        f"{row.get('compress_cpu_seconds', 0):.0f} CPU s, "
        f"evaluated in {row['evaluate_cpu_seconds']:.0f}, peak {row.get('peak_mb', 0):.0f} MB",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--calibration", type=int, default=256, help="images")
    parser.add_argument("--evaluation", type=int, default=500, help="images")
    options = parser.parse_args()
    if options.quick:
        options.calibration, options.evaluation = 16, 32
    return options


def main() -> None:
    options = _options()
    try:
        efficientnet_lite0()
    except AbsentError as error:
        raise SystemExit(str(error)) from None
    shared = (options.calibration, options.evaluation, options.seed, options.effort)
    jobs = [Job(case, *shared) for case in chosen(CASES, options.cases)]
    compare(
        "imagenet",
        _one,
        jobs,
        options,
        usual=Job("", 256, 500, 0, "balanced"),
        more=lambda rows: {
            "interpolated": {
                metric: interpolated(rows, metric, BYTES) for metric in ("accuracy", "agreement")
            }
        },
        model="EfficientNet-Lite0, 4.65 million parameters, float32",
        data=f"imagenet_sample: {options.calibration} images with even labels calibrate, "
        f"{options.evaluation} with odd labels evaluate; one thread",
    )


if __name__ == "__main__":
    main()
