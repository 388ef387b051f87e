"""``fewbits evaluate``: how good the network in a file is on labelled data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...container import inspect as look
from ...errors import shorten
from ...report import noise_table
from ..console.outcome import (
    NOT_MET,
    DecodeThreads,
    Json,
    MaxDecoded,
    Outcome,
    doubt,
    in_bytes,
    verb,
)
from ..console.progress import listening
from ..jobs.stored import stored_source
from ..options import shared
from ..options.metric import known_metric

if TYPE_CHECKING:
    from torch import nn

    from ...evaluation.weight_noise import NoisyEvaluation

__all__ = ["evaluate"]


@verb
def evaluate(
    file: Annotated[Path, typer.Argument(help="A .fewbits file.")],
    *,
    data: Annotated[str, typer.Option(help="Labelled data; its test split is used.")],
    model: Annotated[
        str | None, typer.Option(help="How to build the network. \\[default: what the file says]")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="Told besides accuracy and loss, such as one of a package.")
    ] = "accuracy",
    min_accuracy: Annotated[
        str | None, typer.Option(help="As 0.97 or 97%: exit code 3 below it.")
    ] = None,
    batch_size: shared.BatchSize = 128,
    transform_domain: Annotated[
        bool,
        typer.Option(
            "--transform-domain", help="Run layers that the file holds in a basis as pairs."
        ),
    ] = False,
    weight_noise: Annotated[
        str | None,
        typer.Option(help="As 0.05,0.1: accuracy with normal noise of this size on all weights."),
    ] = None,
    draws: Annotated[int, typer.Option(min=1, help="Of the noise, for each size.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    max_decoded_mib: MaxDecoded = None,
    threads: DecodeThreads = 0,
    as_json: Json = False,
) -> Outcome:
    """Load a file into its network and report top-1 accuracy and mean loss.

    Example: fewbits evaluate digits.fewbits --data digits --min-accuracy 97%
    """
    wanted = None if min_accuracy is None else _fraction(min_accuracy)
    sizes = [] if weight_noise is None else _sizes(weight_noise)
    known_metric(metric)
    source = model or stored_source(file, data)
    from ...api import load  # noqa: PLC0415
    from ...evaluation.metrics import evaluate as judge  # noqa: PLC0415
    from ...sources import load_data, load_model  # noqa: PLC0415

    batches = load_data(data).batches("test", batch_size)
    empty = load_model(source, pretrained=False, fetch=model is not None).module
    limits: Any = {"max_decoded_bytes": in_bytes(max_decoded_mib), "threads": threads}
    before = _multiplications(empty, batches) if transform_domain else 0
    network = load(file, into=empty, transform_domain=transform_domain, **limits)
    with listening() as progress:
        how: Any = {"draws": draws, "seed": seed, "progress": progress}
        found = judge(network, batches, metrics=(metric,), progress=progress)
        noisy = _under_noise(network, batches, sizes, how) if sizes else []
    covered = look(file).report.coverage
    doubt(covered)
    shown: dict[str, Any] = {"file": str(file), "model": source, "data": data}
    shown |= {**found.to_dict(), "quantized": covered.to_dict()}
    told = f"{file}: {found}; {covered}"
    if transform_domain:
        after = _multiplications(network, batches)
        shown["multiplications"] = {"layers": before, "pairs": after}
        told += f"; {after / max(1, before):.3f} of the multiplications"
    tables = (noise_table(noisy),) if noisy else ()
    if noisy:
        shown["weight_noise"] = [one.to_dict() for one in noisy]
    if wanted is None:
        return Outcome(shown, (told, *tables))
    met = found.accuracy >= wanted
    verdict = f"{'at least' if met else 'below'} the wanted {wanted:.2%}"
    outcome = {**shown, "min_accuracy": wanted, "met": met}
    return Outcome(outcome, (f"{told}; {verdict}", *tables), 0 if met else NOT_MET)


def _multiplications(network: nn.Module, batches: Iterable[Any]) -> int:
    """Return what the linear and convolution layers multiply in the first batch."""
    from ...engine.layers.transform_domain import count_multiplications  # noqa: PLC0415
    from ...engine.network.batches import as_forward  # noqa: PLC0415

    return count_multiplications(network, next(iter(batches)), as_forward(None)).total


def _under_noise(
    network: nn.Module, batches: Iterable[Any], sizes: list[float], how: Mapping[str, Any]
) -> list[NoisyEvaluation]:
    """Return the evaluations without noise, and with each size of it."""
    from ...evaluation.weight_noise import noise_resilience  # noqa: PLC0415

    return noise_resilience(network, batches, [0.0, *sizes], **how)


def _sizes(text: str) -> list[float]:
    try:
        sizes = [float(part) for part in text.split(",")]
    except ValueError:
        sizes = [-1.0]
    if not all(0 < size < float("inf") for size in sizes):
        raise typer.BadParameter(
            f"--weight-noise takes sizes above 0, as 0.05,0.1. Got {shorten(text)}."
        )
    return sizes


def _fraction(text: str) -> float:
    percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise typer.BadParameter(f"--min-accuracy takes 0.97 or 97%. Got {shorten(text)}.")
    return value
