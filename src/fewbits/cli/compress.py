"""``fewbits compress``: a network and a way to compress it in, one small file out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from ..coding import EFFORTS
from ..report import plan_table
from .choice import choose
from .progress import listening
from .verb import Force, Json, Outcome, Workers, check_output, note, verb

__all__ = ["compress"]

_METHOD = "How to compress"


@verb
def compress(
    model: Annotated[
        str, typer.Argument(help="module:callable, builtin:NAME, transformers:NAME, timm:NAME ...")
    ],
    *,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The file to write.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Checkpoint to load: .safetensors, .pt or .pth.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="digits, FILE.npz, a folder, datasets:NAME or module:callable."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="See 'fewbits methods'. [default: gpfq]", rich_help_panel=_METHOD),
    ] = None,
    bits: Annotated[int | None, typer.Option(help="Index width.", rich_help_panel=_METHOD)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value of the method; repeat.", rich_help_panel=_METHOD),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="YAML file with rules per layer.", rich_help_panel=_METHOD),
    ] = None,
    calibration_samples: Annotated[
        int, typer.Option(min=1, help="Training samples for calibration.")
    ] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples per batch.")] = 128,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of every random choice. [default: the recipe's]")
    ] = None,
    effort: Annotated[
        str, typer.Option(help="fast, balanced or smallest: time for bytes, same network.")
    ] = "balanced",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan: what happens to every tensor.")
    ] = False,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Accuracy before and after, on the test split.")
    ] = False,
    workers: Workers = 0,
    force: Force = False,
    as_json: Json = False,
) -> Outcome:
    """Compress a trained network to one file.

    Example: fewbits compress builtin:digits-cnn --weights digits-cnn.safetensors
    --data digits --method gpfq --bits 4 -o digits.fewbits
    """
    if out is None and not dry_run:
        raise typer.BadParameter("name the file to write with -o FILE.")
    if evaluate and data is None:
        raise typer.BadParameter("--evaluate needs labelled data: add --data.")
    if effort not in EFFORTS:
        raise typer.BadParameter(f"effort is one of {', '.join(EFFORTS)}, not {effort!r}.")
    chosen = choose(method, bits, settings or (), recipe, data is not None or dry_run)
    if out is not None and not dry_run:
        check_output(out, force)
    from .work import Job, remarks, summary  # noqa: PLC0415  (brings torch)

    job = Job(model, weights, data, chosen, batch_size)
    if dry_run or out is None:
        plan = job.plan()
        return Outcome({"plan": plan}, (plan_table(plan),))
    if evaluate:
        job.check_can_judge()
    with listening() as progress:
        before = job.accuracy(progress) if evaluate else None
        started = time.perf_counter()
        coded = job.compress(calibration_samples, seed, progress)
        seconds = time.perf_counter() - started
        size = coded.save(out, effort, workers=workers)
        after = job.accuracy(progress, out, workers) if evaluate else None
    for text in remarks(coded):
        note(f"note: {text}")
    found: dict[str, Any] = {"file": str(out), "bytes": size, "seconds": seconds}
    lines = [f"{out}: {summary(coded, effort)} ({seconds:.1f} s)"]
    if before and after:
        found["accuracy"] = {"float32": before.to_dict(), "compressed": after.to_dict()}
        lines += [f"float32:    {before}", f"compressed: {after}"]
    report = {"size": coded.size_report(effort).to_dict(), "plan": coded.plan.to_dict()}
    return Outcome({**found, **report, "notes": list(coded.notes)}, tuple(lines))
