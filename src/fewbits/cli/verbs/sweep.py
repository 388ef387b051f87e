"""``fewbits sweep``: accuracy over bytes, for several methods at several settings or sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import shorten
from ...files.atomic_write import check_target
from ...report import check_plot, sweep_table
from ..console.outcome import Json, Outcome, verb
from ..console.progress import listening
from ..options import shared
from ..options.shared import numbers, sizes, whole_numbers, words

__all__ = ["sweep"]


@verb
def sweep(
    model: shared.Network,
    *,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="JSON file; what it has is not measured again.")
    ],
    data: Annotated[str, typer.Option(help="Labelled data.")],
    weights: shared.Weights = None,
    methods: Annotated[
        str, typer.Option(help="As gpfq,rdoq; see 'fewbits methods'. gpfq needs --bits.")
    ] = "gpfq",
    bits: Annotated[
        str | None, typer.Option(help="Widths, as 2,3,4, of methods that have bits.")
    ] = None,
    slopes: Annotated[
        str | None, typer.Option(help="Slopes, as 1e-4,1e-3, of methods that have one.")
    ] = None,
    target_bytes: Annotated[
        str | None, typer.Option(help="Sizes, as 60KB,80KB; fewbits searches for their slopes.")
    ] = None,
    split: Annotated[
        str, typer.Option(help="Where accuracy is taken: test or selection.")
    ] = "test",
    calibration_samples: shared.CalibrationSamples = 1024,
    batch_size: shared.BatchSize = 128,
    seed: shared.Seed = 0,
    effort: shared.Effort = "balanced",
    plot: Annotated[
        Path | None, typer.Option(help="Draw it: .png, .svg or .html (extra 'report').")
    ] = None,
    as_json: Json = False,
) -> Outcome:
    """Measure bytes and accuracy of every method at every setting. Stop and go on at any time.

    Example: fewbits sweep builtin:digits-cnn --weights fewbits-demo/digits-cnn.safetensors
    --data digits --methods gpfq,nearest --bits 2,3,4 -o sweep.json

    ('fewbits demo' writes these weights.)
    """
    if split not in ("test", "selection"):
        raise typer.BadParameter(f"--split is test or selection, not {shorten(split)}.")
    shared.check_effort(effort)
    asked: dict[str, list[Any]] = {
        "methods": words("--methods", methods),
        "bits": [] if bits is None else whole_numbers("--bits", bits),
        "slopes": [] if slopes is None else numbers("--slopes", slopes),
        "sizes": [] if target_bytes is None else sizes("--target-bytes", target_bytes),
    }
    if plot is not None:
        check_plot(plot)
        check_target(plot)
    from ..jobs.survey import Curve  # noqa: PLC0415  (brings torch)

    curve = Curve((model, weights, data), asked, split, batch_size=batch_size)
    means = {"samples": calibration_samples, "seed": seed, "effort": effort}
    with listening() as progress:
        found = curve.measure(out, means, progress).to_dict()
    if plot is not None:
        curve.draw(found, plot)
    return Outcome({"file": str(out), **found}, (sweep_table(found),))
