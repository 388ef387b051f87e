"""``fewbits demo``: train a small network on real digits, then compress it without training."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ...container import inspect as read_header
from ...errors import ConfigError
from ...report import comparison_report, comparison_table
from ..console.outcome import Json, Outcome, note, verb
from ..console.progress import progress_bars
from ..options.shared import ReportFile

__all__ = ["demo"]

_TITLE = "A small network for digits, compressed with every method that needs no training"


@verb
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the files; created if it does not exist.")
    ] = Path("fewbits-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    report: ReportFile = None,
    as_json: Json = False,
) -> Outcome:
    """Train a small CNN on 1,348 digits and compress it with every method that needs no training.

    Each accuracy is that of the network loaded back from its file, on 449 test images used neither
    for training nor for calibration. Nothing is downloaded; it takes half a minute on two cores.

    Example: fewbits demo
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"output {str(out)!r} is a file. Name a folder; it may be a new one.")
    from ..jobs.demo import compare, one_thread, train  # noqa: PLC0415  (brings torch)

    out.mkdir(parents=True, exist_ok=True)
    with progress_bars(quiet=as_json) as progress, one_thread():
        seconds = train(out, seed, progress)
        note(f"trained builtin:digits-cnn in {seconds:.1f} s")
        rows = compare(out, seed, progress)
    footer = (
        f"accuracy: of each file, loaded back, on test images. The files are in {out}/. To look "
        f"inside one: fewbits inspect {out / rows[1].file}"
    )
    coverage = read_header(out / rows[1].file).report.coverage
    table = comparison_table(rows, footer=f"{coverage}\n{footer}")
    facts = {"folder": str(out), "training_seconds": seconds, "rows": [r.to_dict() for r in rows]}
    facts["quantized"] = coverage.to_dict()
    settings = {"folder": out, "seed": seed, "training": f"{seconds:.1f} s"}
    page = partial(comparison_report, rows, title=_TITLE, facts=settings, coverage=coverage)
    return Outcome(facts, (table,), page=page)
