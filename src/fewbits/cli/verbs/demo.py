"""``fewbits demo``: train a small network on real digits, then compress it without training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...container import inspect as look
from ...errors import ConfigError
from ...report import comparison_table
from ..console.outcome import Json, Outcome, note, verb
from ..console.progress import listening

__all__ = ["demo"]


@verb
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the files; made if it is not there.")
    ] = Path("fewbits-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the training.")] = 0,
    as_json: Json = False,
) -> Outcome:
    """Train a small CNN on 1,348 digits; compress it with every method that needs no training.

    Accuracies are of the networks read back from their files, on 449 test images that neither
    training nor calibration saw. No download; half a minute on two cores.

    Example: fewbits demo
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"output {str(out)!r} is a file. Name a folder, or one to be made.")
    from ..jobs.demo import compare, one_thread, train  # noqa: PLC0415  (brings torch)

    out.mkdir(parents=True, exist_ok=True)
    with listening() as progress, one_thread():
        seconds = train(out, seed, progress)
        note(f"trained builtin:digits-cnn in {seconds:.1f} s")
        rows = compare(out, seed, progress)
    footer = (
        f"accuracy: of each file read back, on test images. Files are in {out}/. Look inside: "
        f"fewbits inspect {out / rows[1].file}"
    )
    covered = look(out / rows[1].file).report.coverage
    table = comparison_table(rows, footer=f"{covered}\n{footer}")
    found = {"folder": str(out), "training_seconds": seconds, "rows": [r.to_dict() for r in rows]}
    found["quantized"] = covered.to_dict()
    return Outcome(found, (table,))
