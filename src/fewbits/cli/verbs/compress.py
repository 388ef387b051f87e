"""``fewbits compress``: a network and a way to compress it in, one small file out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...coded import Coverage
from ...report import plan_table
from ..console.outcome import (
    Force,
    Json,
    NoMetadata,
    Outcome,
    Threads,
    check_output,
    doubt,
    note,
    verb,
)
from ..console.progress import listening
from ..options import shared
from ..options.budget import (
    Evaluations,
    MaxDrop,
    Selection,
    TargetBits,
    TargetBytes,
    TimeBudget,
    TraceFile,
    Wanted,
)
from ..options.choice import choose, with_activations
from ..options.metric import Metric
from ..options.training import with_training
from .train import order_of

__all__ = ["compress"]

_METHOD = "How to compress"


@verb
def compress(
    model: shared.Network,
    *,
    out: shared.OutFile = None,
    weights: shared.Weights = None,
    data: shared.Data = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="A method (see 'fewbits methods') or the recipe smallest; hemp, lowbit and pwfn "
            "train. \\[default: gpfq; with a budget, smallest]",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(help="Index width. \\[default: the method's, 4]", rich_help_panel=_METHOD),
    ] = None,
    settings: shared.MethodSettings = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="YAML file with rules per layer, or smallest.", rich_help_panel=_METHOD),
    ] = None,
    activations: Annotated[
        int | None,
        typer.Option(
            min=2, max=8, help="Bits of layers' inputs, from --data.", rich_help_panel=_METHOD
        ),
    ] = None,
    outputs: Annotated[
        bool,
        typer.Option(
            "--outputs",
            help="With --activations: outputs on 8 bits too, for integer kernels of a runtime.",
            rich_help_panel=_METHOD,
        ),
    ] = False,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Go on by training (hemp), or train so long by --method hemp. \\[default: 10 by a "
            "method that trains, else none]",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    target_bytes: TargetBytes = None,
    target_bits: TargetBits = None,
    max_drop: MaxDrop = None,
    metric: Metric = None,
    selection: Selection = None,
    evaluations: Evaluations = 12,
    time_budget: TimeBudget = None,
    trace: TraceFile = None,
    calibration_samples: shared.CalibrationSamples = 1024,
    batch_size: shared.BatchSize = 128,
    seed: shared.RecipeSeed = None,
    effort: Annotated[
        str, typer.Option(help="fast, balanced or smallest: time for bytes, same network.")
    ] = "balanced",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan: what happens to every tensor.")
    ] = False,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Accuracy before and after, on the test split.")
    ] = False,
    no_metadata: NoMetadata = False,
    threads: Threads = 0,
    force: Force = False,
    as_json: Json = False,
) -> Outcome:
    """Compress a trained network to one file, at given settings or to a budget.

    A budget is met by a search on the slope of a method that has one; exit code 3 if it is not.

    With --epochs, a method that trains, or a recipe that has 'train', the network is trained as
    well; checkpoints are in OUT.run, and 'fewbits train --resume OUT.run' goes on with them.

    Example: fewbits compress builtin:digits-cnn --weights fewbits-demo/digits-cnn.safetensors
    --data digits --method gpfq --bits 4 -o digits.fewbits

    Example: fewbits compress builtin:digits-cnn --weights fewbits-demo/digits-cnn.safetensors
    --data digits --max-drop 0.5% -o digits.fewbits

    ('fewbits demo' writes these weights.)
    """
    how = (selection, evaluations, time_budget, trace, metric)
    wanted = Wanted(target_bytes, target_bits, max_drop, *how)
    if out is None and not dry_run:
        raise typer.BadParameter("name the file to write with -o FILE.")
    if data is None and (evaluate or (max_drop is not None and selection is None)):
        asking = "--evaluate" if evaluate else "--max-drop"
        raise typer.BadParameter(f"{asking} needs labelled data: add --data.")
    shared.check_effort(effort)
    has_data = data is not None or dry_run
    chosen = choose(method, bits, settings or (), recipe, has_data, searching=bool(wanted))
    chosen = with_activations(chosen, activations, outputs, has_data)
    if out is not None and not dry_run:
        check_output(out, force)
    if not dry_run and (epochs is not None or chosen.training_stage is not None):
        means = {"effort": effort, "evaluate": evaluate, "calibration_samples": calibration_samples}
        means["metadata"] = not no_metadata
        sources = {"model": model, "weights": weights, "data": data, "selection": None}
        trained = with_training(chosen, {"epochs": epochs}, seed).to_dict()
        return _train(out, sources, trained, means, wanted=wanted, force=force, threads=threads)
    from ..jobs.compress import Job, remarks  # noqa: PLC0415  (brings torch)

    job = Job(model, weights, data, chosen, batch_size=batch_size, wanted=wanted)
    if dry_run or out is None:
        return _planned(job.plan())
    if evaluate:
        job.check_can_judge()
    with listening() as progress:
        done = job.run(
            out,
            samples=calibration_samples,
            seed=seed,
            effort=effort,
            threads=threads,
            evaluate=evaluate,
            metadata=not no_metadata,
            progress=progress,
        )
    for text in remarks(done.coded):
        note(f"note: {text}")
    return Outcome(done.to_dict(), done.shown())


def _planned(plan: dict[str, Any]) -> Outcome:
    covered = Coverage.of_dict(plan["quantized"])
    doubt(covered)
    return Outcome({"plan": plan, "quantized": covered.to_dict()}, (plan_table(plan),))


def _train(
    out: Path | None,
    sources: dict[str, Any],
    recipe: dict[str, Any],
    means: dict[str, Any],
    *,
    wanted: Wanted,
    force: bool,
    threads: int,
) -> Outcome:
    if wanted:
        raise typer.BadParameter(
            "a budget and a training do not go together: compress to the budget, then "
            "'fewbits train --start FILE'."
        )
    order = order_of(out, sources, recipe, means, force=force)
    from ..jobs.train import carry_out  # noqa: PLC0415

    with listening() as progress:
        return carry_out(
            order, resume=False, device="auto", devices=1, threads=threads, progress=progress
        )
