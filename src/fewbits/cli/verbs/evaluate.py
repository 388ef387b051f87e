"""``fewbits evaluate``: measure the accuracy of the network in a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...container import inspect as read_header
from ...errors import shorten
from ...report import noise_table
from ..console.outcome import (
    NOT_MET,
    DecodeThreads,
    Json,
    MaxDecoded,
    Outcome,
    mib_to_bytes,
    verb,
    warn_low_coverage,
)
from ..console.progress import progress_bars
from ..jobs.stored import stored_source
from ..options import shared
from ..options.metric import ForwardName, has_own_data, known_forward, known_metric

if TYPE_CHECKING:
    from torch import nn

    from ...engine.network.batches import Forward
    from ...evaluation.metrics import Result
    from ...evaluation.weight_noise import NoisyEvaluation
    from ...progress import Progress
    from ...sources import LoadedModel

__all__ = ["evaluate"]


@verb
def evaluate(
    file: Annotated[Path, typer.Argument(help="A .fewbits file.")],
    *,
    data: Annotated[
        str | None,
        typer.Option(
            help="Labelled data, of which the test split is used; or text:FILE. A metric of your "
            "own may do without."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The network's source. \\[default: the one in the file]")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="If FILE is a delta, what it is a change of: a .fewbits file, a checkpoint, or a "
            "folder with one."
        ),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="Metric to report besides accuracy and loss, such as perplexity; or instead of "
            "them, module:callable, your function of the network and batches."
        ),
    ] = "accuracy",
    min_accuracy: Annotated[
        str | None, typer.Option(help="Exit with code 3 below this accuracy: 0.97 or 97%.")
    ] = None,
    batch_size: shared.BatchSize = None,
    forward: ForwardName = None,
    transform_domain: Annotated[
        bool,
        typer.Option(
            "--transform-domain",
            help="Run each layer stored in a basis as a pair of layers, without leaving the basis.",
        ),
    ] = False,
    lazy: Annotated[
        bool,
        typer.Option(
            "--lazy",
            help="Leave the weights in the file, and decode each when it is used: slower, in a "
            "fraction of the memory, with the same result.",
        ),
    ] = False,
    weight_noise: Annotated[
        str | None,
        typer.Option(
            help="Also evaluate with normal noise of these relative sizes on all weights: 0.05,0.1."
        ),
    ] = None,
    draws: Annotated[
        int, typer.Option(min=1, help="With --weight-noise: random draws per size.")
    ] = 20,
    seed: Annotated[int, typer.Option(min=0, help="With --weight-noise: random seed.")] = 0,
    max_decoded_mib: MaxDecoded = None,
    threads: DecodeThreads = 0,
    as_json: Json = False,
) -> Outcome:
    """Load a file into its network and report top-1 accuracy and mean loss.

    A language model is evaluated on a text, where every token predicts the next one: add
    --metric perplexity and --data text:FILE, with the tokenizer of the network's folder.

    Example: fewbits evaluate digits.fewbits --data digits --min-accuracy 97%
    """
    least = None if min_accuracy is None else _fraction(min_accuracy)
    sizes = [] if weight_noise is None else _sizes(weight_noise)
    _check_options(metric, data, labelled=bool(sizes) or transform_domain, least=least)
    _check_loading(base, noisy=bool(sizes), lazy=lazy, transform_domain=transform_domain)
    source = model or stored_source(file, data or "")
    loaded, batches = _network_and_data(source, data, batch_size, fetch=model is not None)
    from ...api import load  # noqa: PLC0415
    from ...engine.network.batches import as_forward  # noqa: PLC0415

    call, empty = as_forward(known_forward(forward)), loaded.module
    limits: Any = {"max_decoded_bytes": mib_to_bytes(max_decoded_mib), "threads": threads}
    before = _multiplications(empty, batches, call) if transform_domain else 0
    how: Any = {"base": base, "transform_domain": transform_domain, "lazy": lazy}
    network = load(file, into=empty, **how, **limits)
    with progress_bars(quiet=as_json) as progress:
        noise: Any = {"draws": draws, "seed": seed, "progress": progress, "forward": call}
        result = _result(metric, network, batches, call, progress)
        noisy = _under_noise(network, batches, sizes, noise) if sizes else []
    header = read_header(file)
    warn_low_coverage(coverage := header.report.coverage, header.metadata)
    facts: dict[str, Any] = {"file": str(file), "model": source, "data": data}
    facts |= {**result.to_dict(), "dtype": loaded.dtype, "quantized": coverage.to_dict()}
    where = "" if loaded.dtype == "float32" else f", in {loaded.dtype}"
    line = f"{file}: {result}{where}; {coverage if base is None else f'on {base}'}"
    if transform_domain:
        after = _multiplications(network, batches, call)
        facts["multiplications"] = {"layers": before, "pairs": after}
        line += f"; {after / max(1, before):.3f} of the multiplications"
    tables = (noise_table(noisy),) if noisy else ()
    if noisy:
        facts["weight_noise"] = [row.to_dict() for row in noisy]
    if least is None:
        return Outcome(facts, (line, *tables))
    met = result.value("accuracy") >= least
    verdict = f"{'at least' if met else 'below'} the required {least:.2%}"
    facts = {**facts, "min_accuracy": least, "met": met}
    return Outcome(facts, (f"{line}; {verdict}", *tables), 0 if met else NOT_MET)


def _check_options(metric: str, data: str | None, *, labelled: bool, least: float | None) -> None:
    """Refuse what needs accuracy or data that there are not."""
    known_metric(metric)
    if data is None and (labelled or not has_own_data(metric)):
        raise typer.BadParameter("no data to evaluate on: add --data.")
    if least is not None and has_own_data(metric):
        raise typer.BadParameter(
            "--min-accuracy needs accuracy, which a metric of your own replaces: leave one out."
        )


def _check_loading(base: Path | None, *, noisy: bool, lazy: bool, transform_domain: bool) -> None:
    """Refuse ways of loading that exclude each other."""
    if lazy and (noisy or transform_domain):
        raise typer.BadParameter(
            "--lazy leaves the weights as they are in the file: leave out --weight-noise and "
            "--transform-domain."
        )
    if base is not None and (lazy or transform_domain):
        raise typer.BadParameter(
            "--base makes whole weights of a delta: leave out --lazy and --transform-domain."
        )


def _network_and_data(
    source: str, data: str | None, batch_size: int | None, *, fetch: bool
) -> tuple[LoadedModel, Iterable[Any] | None]:
    """Build the network without trained weights, and read the test split if data is named."""
    from ...sources import load_data, load_model  # noqa: PLC0415

    batches = None if data is None else load_data(data, source).batches("test", batch_size)
    return load_model(source, pretrained=False, fetch=fetch), batches


def _result(
    metric: str,
    network: nn.Module,
    batches: Iterable[Any] | None,
    forward: Forward,
    progress: Progress,
) -> Result:
    from ...evaluation.metrics import evaluate_by  # noqa: PLC0415

    return evaluate_by(known_metric(metric), network, batches, forward, progress=progress)


def _multiplications(network: nn.Module, batches: Iterable[Any] | None, forward: Forward) -> int:
    """Count the multiplications of linear and convolution layers in the first batch."""
    from ...engine.layers.transform_domain import count_multiplications  # noqa: PLC0415

    return count_multiplications(network, next(iter(batches or ())), forward).total


def _under_noise(
    network: nn.Module,
    batches: Iterable[Any] | None,
    sizes: list[float],
    options: Mapping[str, Any],
) -> list[NoisyEvaluation]:
    """Evaluate without noise, and with each size of noise."""
    from ...evaluation.weight_noise import noise_resilience  # noqa: PLC0415

    return noise_resilience(network, batches or (), [0.0, *sizes], **options)


def _sizes(text: str) -> list[float]:
    try:
        sizes = [float(part) for part in text.split(",")]
    except ValueError:
        sizes = [-1.0]
    if not all(0 < size < float("inf") for size in sizes):
        raise typer.BadParameter(
            f"--weight-noise takes sizes > 0, such as 0.05,0.1. Got {shorten(text)}."
        )
    return sizes


def _fraction(text: str) -> float:
    percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise typer.BadParameter(
            f"--min-accuracy takes a number such as 0.97 or 97%. Got {shorten(text)}."
        )
    return value
