"""``fewbits sweep``: measure accuracy over bytes for several methods, settings or sizes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import shorten
from ...files.atomic_write import check_target
from ...report import Table, check_plot, failures, sweep_report, sweep_table
from ..console.outcome import Json, Outcome, verb
from ..console.progress import progress_bars
from ..options import shared
from ..options.engine import Cpus, EngineName, RayAddress, Tries, chosen_engine
from ..options.shared import drops, numbers, sizes, whole_numbers, words

__all__ = ["sweep"]


@verb
def sweep(
    model: shared.Network,
    *,
    out: Annotated[
        Path,
        typer.Option("-o", "--out", help="JSON file; points already in it are not measured again."),
    ],
    data: Annotated[str, typer.Option(help="Labelled data.")],
    weights: shared.Weights = None,
    methods: Annotated[
        str,
        typer.Option(help="Methods, such as qronos,rdoq (fewbits methods). qronos needs --bits."),
    ] = "qronos",
    bits: Annotated[
        str | None, typer.Option(help="Bits to try, such as 2,3,4, for methods that have bits.")
    ] = None,
    slopes: Annotated[
        str | None,
        typer.Option(help="Slopes to try, such as 1e-4,1e-3, for methods that have a slope."),
    ] = None,
    target_bytes: Annotated[
        str | None,
        typer.Option(
            help="Sizes to meet, such as 60KB,80KB, by searching for the slope; for methods that "
            "have a slope."
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            help="Drops in accuracy, such as 0.5%,1%: find the smallest file within each, "
            "judged on half of the training split; for methods that have a slope."
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="Split to measure accuracy on: test or selection.")
    ] = "test",
    calibration_samples: shared.CalibrationSamples = 1024,
    batch_size: shared.BatchSize = None,
    seed: shared.Seed = 0,
    effort: shared.Effort = "balanced",
    plot: Annotated[
        Path | None,
        typer.Option(help="Plot to draw: a .png, .svg or .html file (needs the extra 'report')."),
    ] = None,
    engine: EngineName = "serial",
    ray_address: RayAddress = None,
    cpus: Cpus = None,
    tries: Tries = None,
    report: shared.ReportFile = None,
    as_json: Json = False,
) -> Outcome:
    """Measure bytes and accuracy of every method at every setting.

    May be interrupted at any time: the same command continues where it stopped. With --engine ray,
    points are measured side by side; those that fail are listed, and the exit code is 1.

    Example: fewbits sweep builtin:digits-cnn --weights fewbits-demo/digits-cnn.safetensors
    --data digits --methods qronos,nearest --bits 2,3,4 -o sweep.json

    ('fewbits demo' writes these weights.)
    """
    if split not in ("test", "selection"):
        raise typer.BadParameter(f"--split must be test or selection. Got {shorten(split)}.")
    shared.check_effort(effort)
    request: dict[str, list[Any]] = {
        "methods": words("--methods", methods),
        "bits": [] if bits is None else whole_numbers("--bits", bits),
        "slopes": [] if slopes is None else numbers("--slopes", slopes),
        "sizes": [] if target_bytes is None else sizes("--target-bytes", target_bytes),
        "drops": [] if max_drop is None else drops("--max-drop", max_drop),
    }
    if max_drop is not None and split == "selection":
        raise typer.BadParameter(
            "--max-drop chooses by the selection split, which then measures nothing: leave out "
            "--split selection."
        )
    where = chosen_engine(engine, ray_address, cpus, tries)
    if plot is not None:
        check_plot(plot)
        check_target(plot)
    from ..jobs.points import Survey  # noqa: PLC0415  (brings torch)
    from ..jobs.survey import Curve  # noqa: PLC0415

    survey = Survey(
        model, weights, data, split, batch_size, calibration_samples, seed, effort, where.cpus
    )
    curve = Curve(survey, request, where)
    with progress_bars(quiet=as_json) as progress:
        found, failed = curve.measure(out, progress)
    points = found.to_dict()
    if plot is not None:
        curve.draw(points, plot)
    facts = {"file": str(out), **points, **({"failed": failed} if failed else {})}
    shown: tuple[Table | str, ...] = (sweep_table(points), *failures(failed))
    page = partial(sweep_report, points, failed, f"{model}: accuracy over bytes")
    return Outcome(facts, shown, exit_code=1 if failed else 0, page=page)
