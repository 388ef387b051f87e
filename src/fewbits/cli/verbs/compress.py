"""``fewbits compress``: compress a network to one small file."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...coded import Coverage
from ...report import plan_report, plan_table
from ..console.outcome import (
    Force,
    Json,
    NoMetadata,
    Outcome,
    Threads,
    check_output,
    note,
    verb,
    warn_low_coverage,
)
from ..console.progress import progress_bars
from ..console.ranks import launched
from ..options import shared
from ..options.budget import (
    BudgetOptions,
    Evaluations,
    MaxDrop,
    Selection,
    TargetBits,
    TargetBytes,
    TimeBudget,
    TraceFile,
)
from ..options.choice import choose_recipe, parse_settings, with_activations
from ..options.metric import ForwardName, Metric, has_own_data, known_forward
from ..options.training import with_training
from .train import make_request

if TYPE_CHECKING:
    from ...recipe.recipe import Recipe
    from ..jobs.compress import CompressedFile

__all__ = ["compress"]

_METHOD = "How to compress"
_LORA = ("model", "out", "method", "settings", "effort", "threads", "force", "as_json")
_EXACT = (*_LORA, "weights", "base", "recipe")


@verb
def compress(
    context: typer.Context,
    model: shared.Network,
    *,
    out: shared.OutFile = None,
    weights: shared.Weights = None,
    data: shared.Data = None,
    calibration: shared.Calibration = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="A method (see 'fewbits methods') or a recipe, smallest or lossless; hemp, lowbit "
            "and pwfn train the network; lora is for the folder of an adapter. \\[default: qronos; "
            "with a budget, the recipe smallest]",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(help="Bits per index. \\[default: the method's, 4]", rich_help_panel=_METHOD),
    ] = None,
    group: Annotated[
        int | None,
        typer.Option(
            help="Inputs of a neuron that share a step, such as 32 or 128. \\[default: all]",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    settings: shared.MethodSettings = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="YAML file with rules per layer, or the recipe smallest or lossless.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            help="Write only the changes since these weights: a .fewbits file, a checkpoint, or a "
            "folder with one. Exactly, unless a method or a budget is given.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="A .fewbits file of the same network: weights are rounded to its levels (steps, "
            "codebooks). A method that trains begins there.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    activations: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=8,
            help="Also quantize the inputs of layers to this many bits, calibrated on the data.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    outputs: Annotated[
        bool,
        typer.Option(
            "--outputs",
            help="With --activations: also quantize outputs, to 8 bits, for runtimes with integer "
            "kernels.",
            rich_help_panel=_METHOD,
        ),
    ] = False,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Epochs to train for, after compression (with hemp) or by a method that trains. "
            "\\[default: 10 for a method that trains, otherwise none]",
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
    batch_size: shared.BatchSize = None,
    forward: ForwardName = None,
    seed: shared.RecipeSeed = None,
    effort: Annotated[
        str,
        typer.Option(
            help="How hard to work on coding: fast, balanced or smallest. The network is the same."
        ),
    ] = "balanced",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only print the plan: what would happen to every tensor."),
    ] = False,
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate", help="Measure accuracy before and after, on the test split."),
    ] = False,
    no_metadata: NoMetadata = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Folder in which finished layers are kept. After an interruption, the same "
            "command goes on after the last one."
        ),
    ] = None,
    threads: Threads = 0,
    report: shared.ReportFile = None,
    force: Force = False,
    as_json: Json = False,
) -> Outcome:
    """Compress a trained network to one file, with given settings or within a budget.

    To meet a budget, fewbits searches for the slope (the price of a bit in squared error), or for
    the number of levels of a method that has none; the exit code is 3 if no network meets it.

    The network is also trained if --epochs is given, the method trains, or the recipe has a
    'train' section. Checkpoints go to OUT.run; 'fewbits train --resume OUT.run' continues an
    interrupted run.

    The folder of a Hugging Face model is a network too. Its weights are read when they are used,
    so it may be larger than memory.

    Example: fewbits compress builtin:digits-cnn --weights fewbits-demo/digits-cnn.safetensors
    --data digits --method qronos --bits 4 -o digits.fewbits

    Example: fewbits compress builtin:digits-cnn --weights fewbits-demo/digits-cnn.safetensors
    --data digits --max-drop 0.5% -o digits.fewbits

    What changed in training since FILE, exactly: fewbits compress FOLDER --base FILE -o
    change.fewbits. With --method or a budget, differences are quantized. 'fewbits decode
    change.fewbits --base FILE' gives the new weights.

    A LoRA adapter is compressed at an error of its products: fewbits compress FOLDER --method lora
    --set error=0.05 -o adapter.fewbits

    A language model is calibrated on a text file: fewbits compress FOLDER --calibration
    text:FILE:tokens=512,samples=128 --method gptq --bits 4 -o model.fewbits

    Under torchrun, processes share the work, and the first writes the file: torchrun
    --nproc-per-node 2 -m fewbits compress ... (see the guide "Many machines").

    ('fewbits demo' writes these weights.)
    """
    search = (selection, evaluations, time_budget, trace, metric)
    budget = BudgetOptions(target_bytes, target_bits, max_drop, *search)
    _check_given(out, data, budget, evaluate=evaluate, dry_run=dry_run)
    shared.check_effort(effort)
    if method == "lora":
        work: dict[str, Any] = {"force": force, "effort": effort, "threads": threads}
        return _adapter(context, model, settings or (), out, **work)
    exact = {method, recipe} <= {None, "lossless"} and not budget
    if base is not None and exact and not (bits or group or settings):
        return _changes(context, (model, weights, base, out), effort, threads, force=force)
    has_data = data is not None or calibration is not None or dry_run
    settled = (method, bits, settings or (), recipe, has_data)
    chosen = choose_recipe(*settled, group=group, searching=bool(budget))
    chosen = with_activations(chosen, activations, outputs, has_data)
    if not dry_run and (epochs is not None or chosen.training_stage is not None):
        _check_networks(base, start, chosen)
        run = {"effort": effort, "evaluate": evaluate, "calibration_samples": calibration_samples}
        run |= {"metadata": not no_metadata, "start": None if start is None else str(start)}
        sources = {"model": model, "weights": weights, "data": data, "selection": None}
        _check_trains({"resume": resume, "calibration": calibration, "forward": forward}, out)
        trained = with_training(chosen, {"epochs": epochs}, seed).to_dict()
        work = {"force": force, "threads": threads, "quiet": as_json}
        return _train(out, sources, trained, run, budget=budget, **work)
    from ..jobs.compress import Job  # noqa: PLC0415  (brings torch)

    how = _given(base=base, start=start, calibration=calibration, forward=known_forward(forward))
    how |= {"batch_size": batch_size, "budget": budget, "scored": evaluate}
    what = (model, weights, data, chosen)
    if dry_run or out is None:
        return _planned(Job(*what, **how).plan())
    with launched() as first, progress_bars(quiet=as_json) as progress:
        if first:
            check_output(out, force)
        work = {"samples": calibration_samples, "seed": seed, "effort": effort, "threads": threads}
        work |= {"evaluate": evaluate, "metadata": not no_metadata, "resume": resume}
        result = Job(*what, **how).run(out, **work, progress=progress)
    told: dict[str, Any] = {"network": model, "weights": weights, "data": data}
    told |= {"calibration": calibration, "calibration samples": calibration_samples}
    told |= {"effort": effort, "seed": seed, **_given(base=base, start=start), **budget.told()}
    return _shown(result, told)


def _given(**options: Any) -> dict[str, Any]:
    """Return the options that are given."""
    return {name: value for name, value in options.items() if value is not None}


def _shown(result: CompressedFile | None, facts: Mapping[str, object]) -> Outcome:
    if result is None:
        return Outcome({}, silent=True)
    from ..jobs.compress import plan_notes  # noqa: PLC0415  (brings torch)

    for text in plan_notes(result.coded):
        note(f"note: {text}")
    return Outcome(result.to_dict(), result.shown(), page=partial(result.page, facts))


def _check_given(
    out: Path | None, data: str | None, budget: BudgetOptions, *, evaluate: bool, dry_run: bool
) -> None:
    """Refuse a command without its output file, or without data to evaluate on."""
    if out is None and not dry_run:
        raise typer.BadParameter("no output file: add -o FILE.")
    searches_drop = budget.max_drop is not None and budget.selection is None
    if data is None and not has_own_data(budget.metric) and (evaluate or searches_drop):
        option = "--evaluate" if evaluate else "--max-drop"
        raise typer.BadParameter(f"{option} needs labelled data: add --data.")


def _changes(
    context: typer.Context,
    what: tuple[str, Path | None, Path, Path | None],
    effort: str,
    threads: int,
    *,
    force: bool,
) -> Outcome:
    """Write the changes since a base, for which there is nothing to choose but the effort."""
    exactly = "--base writes the changes of all weights, exactly: leave out {}"
    _only(context, _EXACT, f"{exactly}, or choose how to quantize them, by --method or a budget.")
    model, weights, base, out = what
    out = _checked_output(out, force)
    from ..jobs.delta import write_delta  # noqa: PLC0415  (brings torch)

    return write_delta(model, weights, base, out, effort=effort, threads=threads)


def _adapter(
    context: typer.Context,
    folder: str,
    settings: Sequence[str],
    out: Path | None,
    *,
    force: bool,
    **how: Any,
) -> Outcome:
    """Compress a LoRA adapter, for which there is nothing to choose but the error."""
    _only(context, _LORA, "--method lora compresses the adapter in a file or folder: leave out {}.")
    chosen = parse_settings(settings)
    if unknown := sorted(chosen.keys() - {"error"}):
        raise typer.BadParameter(f"--method lora has the setting error, but not {unknown[0]!r}.")
    out = _checked_output(out, force)
    from ..jobs.adapter import write_adapter  # noqa: PLC0415  (brings torch)

    return write_adapter(Path(folder), out, chosen, **how)


def _only(context: typer.Context, allowed: Container[str], text: str) -> None:
    """Refuse all options but those that are allowed."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if name not in allowed and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(text.format(f"--{name.replace('_', '-')}"))


def _checked_output(out: Path | None, force: bool) -> Path:
    if out is None:
        raise typer.BadParameter("no output file: add -o FILE.")
    check_output(out, force)
    return out


def _check_networks(base: Path | None, start: Path | None, recipe: Recipe) -> None:
    """Refuse to train towards a delta, or from a start after another one."""
    if base is not None:
        raise typer.BadParameter(
            "--base takes the difference of weights that are trained already: compress and train "
            "without it, then write the delta of what was trained."
        )
    if start is not None and recipe.first_stage is not None:
        raise typer.BadParameter(
            "--start is where a training begins, so nothing is compressed before it: leave out "
            "--epochs, or train with 'fewbits train --start FILE'."
        )


def _check_trains(given: Mapping[str, Any], out: Path | None) -> None:
    """Refuse options of a command that does not train."""
    for name in ("calibration", "forward"):
        if given[name] is not None:
            raise typer.BadParameter(
                f"--{name} does not apply to training, which calibrates on the training split of "
                "--data and calls the network on its inputs. Leave it out."
            )
    if given["resume"] is not None:
        raise typer.BadParameter(
            "--resume keeps finished layers, and this command trains: its checkpoints go to "
            f"{out}.run, and 'fewbits train --resume {out}.run' continues."
        )


def _planned(plan: dict[str, Any]) -> Outcome:
    covered = Coverage.of_dict(plan["quantized"])
    warn_low_coverage(covered, plan)
    shown = (plan_table(plan),)
    facts = {"plan": plan, "quantized": covered.to_dict()}
    return Outcome(facts, shown, page=partial(plan_report, plan))


def _train(
    out: Path | None,
    sources: dict[str, Any],
    recipe: dict[str, Any],
    options: dict[str, Any],
    *,
    budget: BudgetOptions,
    force: bool,
    threads: int,
    quiet: bool,
) -> Outcome:
    if budget:
        raise typer.BadParameter(
            "a budget cannot be combined with training: compress to the budget first, then run "
            "'fewbits train --start FILE'."
        )
    request = make_request(out, sources, recipe, options, force=force)
    from ..jobs.train import run_training  # noqa: PLC0415

    with progress_bars(quiet=quiet) as progress:
        return run_training(
            request, resume=False, device="auto", devices=1, threads=threads, progress=progress
        )
