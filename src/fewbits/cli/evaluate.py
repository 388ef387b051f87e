"""``fewbits evaluate``: how good the network in a file is on labelled data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..container import inspect as look
from ..errors import SourceError
from .progress import listening
from .verb import NOT_MET, Json, MaxDecoded, Outcome, Workers, in_bytes, verb

if TYPE_CHECKING:
    from torch import nn

__all__ = ["evaluate", "stored_source"]


@verb
def evaluate(
    file: Annotated[Path, typer.Argument(help="A .fewbits file.")],
    *,
    data: Annotated[str, typer.Option(help="Labelled data; its test split is used.")],
    model: Annotated[
        str | None, typer.Option(help="How to build the network. \\[default: what the file says]")
    ] = None,
    min_accuracy: Annotated[
        str | None, typer.Option(help="As 0.97 or 97%: exit code 3 below it.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per batch.")] = 128,
    transform_domain: Annotated[
        bool,
        typer.Option(help="Run layers that the file holds in a basis as pairs of layers."),
    ] = False,
    max_decoded_mib: MaxDecoded = None,
    workers: Workers = 0,
    as_json: Json = False,
) -> Outcome:
    """Load a file into its network and report top-1 accuracy and mean loss.

    Example: fewbits evaluate digits.fewbits --data digits --min-accuracy 97%
    """
    wanted = None if min_accuracy is None else _fraction(min_accuracy)
    source = model or stored_source(file, data)
    from ..api import load  # noqa: PLC0415
    from ..evaluate import evaluate as judge  # noqa: PLC0415
    from ..sources import load_data, load_model  # noqa: PLC0415

    batches = load_data(data).batches("test", batch_size)
    empty = load_model(source, pretrained=False).module
    limit = in_bytes(max_decoded_mib)
    before = _multiplications(empty, batches) if transform_domain else 0
    network = load(
        file,
        into=empty,
        max_decoded_bytes=limit,
        workers=workers,
        transform_domain=transform_domain,
    )
    with listening() as progress:
        found = judge(network, batches, progress=progress)
    met = wanted is None or found.accuracy >= wanted
    shown = {"file": str(file), "model": source, "data": data, **found.to_dict()}
    told = f"{file}: {found}"
    if transform_domain:
        after = _multiplications(network, batches)
        shown["multiplications"] = {"layers": before, "pairs": after}
        told += f"; {after / max(1, before):.3f} of the multiplications"
    if wanted is None:
        return Outcome(shown, (told,))
    verdict = f"{'at least' if met else 'below'} the wanted {wanted:.2%}"
    outcome = {**shown, "min_accuracy": wanted, "met": met}
    return Outcome(outcome, (f"{told}; {verdict}",), 0 if met else NOT_MET)


def _multiplications(network: nn.Module, batches: Iterable[Any]) -> int:
    """Return what the linear and convolution layers multiply in the first batch."""
    from ..engine.batches import as_forward  # noqa: PLC0415
    from ..engine.transform_domain import count_multiplications  # noqa: PLC0415

    return count_multiplications(network, next(iter(batches)), as_forward(None)).total


def stored_source(file: Path, data: str) -> str:
    """Return how the file says its network is built.

    Of one's own modules, a file may only name the one that the command line names too: otherwise
    a file from elsewhere could have any installed function called.
    """
    source = look(file).metadata.get("source")
    if not isinstance(source, str) or not source:
        raise SourceError(f"{file}: does not say how to build its network. Add --model SOURCE.")
    scheme, _, attribute = source.partition(":")
    listed = scheme in ("builtin", "transformers", "timm", "torchvision")
    named = attribute.isidentifier() and scheme == data.partition(":")[0]
    if not (listed or named):
        raise SourceError(
            f"{file}: names the network {source!r}, which would import and call code. "
            f"Add --model {source} if you trust it."
        )
    return source


def _fraction(text: str) -> float:
    percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise typer.BadParameter(f"--min-accuracy takes 0.97 or 97%. Got {text!r}.")
    return value
