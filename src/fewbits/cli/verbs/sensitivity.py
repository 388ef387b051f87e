"""``fewbits sensitivity``: which layers can do with few bits, and which cannot."""

from __future__ import annotations

from typing import Annotated

import typer

from ...report import sensitivity_table
from ..console.outcome import Json, Outcome, doubt, verb
from ..console.progress import listening
from ..options import shared
from ..options.shared import whole_numbers

__all__ = ["sensitivity"]


@verb
def sensitivity(
    model: shared.Network,
    *,
    data: Annotated[str, typer.Option(help="Its training split calibrates.")],
    weights: shared.Weights = None,
    method: Annotated[str, typer.Option(help="One with a setting 'bits'.")] = "gpfq",
    bits: Annotated[str, typer.Option(help="Widths to try.")] = "2,3,4",
    selection: Annotated[
        str | None,
        typer.Option(
            help="Tell accuracies too, on this labelled data; the name given as --data for half "
            "of its training part."
        ),
    ] = None,
    calibration_samples: shared.CalibrationSamples = 512,
    batch_size: shared.BatchSize = 128,
    seed: shared.Seed = 0,
    effort: shared.Effort = "balanced",
    as_json: Json = False,
) -> Outcome:
    """Quantize every layer alone, all others in float, and tell what that harms and saves.

    Columns: squared error of the layer's output over the output, mean squared change of the logits,
    Kullback-Leibler divergence from the float network, on calibration data; bytes of the layer.

    Example: fewbits sensitivity builtin:digits-cnn --weights fewbits-demo/digits-cnn.safetensors
    --data digits --bits 2,3,4

    ('fewbits demo' writes these weights.)
    """
    widths = whole_numbers("--bits", bits)
    from ..jobs.survey import layer_rows  # noqa: PLC0415  (brings torch)

    with listening() as progress:
        rows, covered = layer_rows(
            (model, weights, data),
            (method, widths),
            selection=selection,
            samples=calibration_samples,
            batch_size=batch_size,
            seed=seed,
            effort=effort,
            progress=progress,
        )
    told = [row.to_dict() for row in rows]
    doubt(covered)
    found = {"model": model, "data": data, "rows": told, "quantized": covered.to_dict()}
    return Outcome(found, (sensitivity_table(told, coverage=covered),))
