"""``fewbits sensitivity``: find out which layers tolerate few bits and which do not."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from ...report import Table, sensitivity_report, sensitivity_table
from ..console.outcome import Json, Outcome, verb, warn_low_coverage
from ..console.progress import progress_bars
from ..console.ranks import launched
from ..options import shared
from ..options.engine import Cpus, EngineName, RayAddress, Tries, chosen_engine
from ..options.metric import ForwardName, known_forward
from ..options.shared import whole_numbers

__all__ = ["sensitivity"]


@verb
def sensitivity(
    model: shared.Network,
    *,
    data: Annotated[str, typer.Option(help="The data; the training split is used to calibrate.")],
    weights: shared.Weights = None,
    method: Annotated[str, typer.Option(help="A method that has the setting 'bits'.")] = "qronos",
    bits: Annotated[str, typer.Option(help="Bits to try, separated by commas.")] = "2,3,4",
    selection: Annotated[
        str | None,
        typer.Option(
            help="Also measure accuracy on this labelled data; repeat the name given to --data to "
            "use half of its training split."
        ),
    ] = None,
    calibration_samples: shared.CalibrationSamples = 512,
    batch_size: shared.BatchSize = None,
    forward: ForwardName = None,
    seed: shared.Seed = 0,
    effort: shared.Effort = "balanced",
    engine: EngineName = "serial",
    ray_address: RayAddress = None,
    cpus: Cpus = None,
    tries: Tries = None,
    report: shared.ReportFile = None,
    as_json: Json = False,
) -> Outcome:
    """Quantize one layer at a time, all others in float, and report the error and the bytes.

    Columns: relative squared error of the layer's output, mean squared change of the logits and
    Kullback-Leibler divergence from the float network, all on calibration data; bytes of the layer.

    Example: fewbits sensitivity builtin:digits-cnn --weights fewbits-demo/digits-cnn.safetensors
    --data digits --bits 2,3,4

    Under torchrun, processes share the work, and the first prints the table.

    ('fewbits demo' writes these weights.)
    """
    widths = whole_numbers("--bits", bits)
    shared.check_effort(effort)
    where = chosen_engine(engine, ray_address, cpus, tries)
    from ..jobs.survey import layer_rows  # noqa: PLC0415  (brings torch)

    with launched() as first, progress_bars(quiet=as_json) as progress:
        rows, coverage, trouble = layer_rows(
            (model, weights, data),
            (method, widths),
            selection=selection,
            samples=calibration_samples,
            batch_size=batch_size,
            seed=seed,
            effort=effort,
            forward=known_forward(forward),
            engine=where,
            progress=progress,
        )
        warn_low_coverage(coverage)
    plain = [row.to_dict() for row in rows]
    facts: dict[str, Any] = {
        "model": model,
        "data": data,
        "rows": plain,
        "quantized": coverage.to_dict(),
    }
    settings: dict[str, object] = {
        "network": model,
        "weights": weights,
        "data": data,
        "method": method,
    }
    settings |= {"bits": bits, "calibration samples": calibration_samples, "seed": seed}
    title = f"{model}: sensitivity"
    page = partial(sensitivity_report, plain, coverage, facts=settings, title=title)
    shown: tuple[Table | str, ...] = (sensitivity_table(plain, coverage=coverage),)
    if trouble is None:
        return Outcome(facts, shown, silent=not first, page=page)
    facts |= {"failed": trouble.failed, "error": {"type": "ClusterError", "message": str(trouble)}}
    return Outcome(facts, (*shown, f"error: {trouble}"), exit_code=1, page=page)
