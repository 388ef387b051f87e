"""``fewbits train``: train a network so that its file is small, and write the file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from ..console.outcome import Force, Json, NoMetadata, Outcome, Threads, check_output, verb
from ..console.progress import progress_bars
from ..jobs.run_folder import RunRequest, resume_request
from ..options import shared
from ..options import training as options
from ..options.shared import words

__all__ = ["make_request", "train"]

_Options: TypeAlias = dict[str, Any]

_METHOD = "How to compress"


@verb
def train(
    model: shared.NetworkOrNone = None,
    *,
    out: shared.OutFile = None,
    weights: shared.Weights = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="What to start from: a .fewbits file of the same network, 'smallest' (compress by "
            "this recipe first, calibrated by training samples), or 'float', the weights as they "
            "are. \\[default: smallest for hemp with its default levels and rate, else float]"
        ),
    ] = None,
    data: shared.Data = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="The training method: hemp, lowbit or pwfn; see 'fewbits methods'. "
            "\\[default: hemp]",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    settings: shared.MethodSettings = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="YAML file with rules and a 'train' section.", rich_help_panel=_METHOD),
    ] = None,
    epochs: options.Epochs = None,
    batch_size: options.BatchSize = None,
    accumulate: options.Accumulate = None,
    optimizer: options.OptimizerName = None,
    learning_rate: options.LearningRate = None,
    momentum: options.Momentum = None,
    weight_decay: options.WeightDecay = None,
    warm_up: options.WarmUp = None,
    clip: options.Clip = None,
    relative_clip: options.RelativeClip = None,
    distil: options.Distil = None,
    temperature: options.Temperature = None,
    augment: options.Augment = None,
    padding: options.Padding = None,
    prune: options.Prune = None,
    vector_bits: options.VectorBits = None,
    norms: options.Norms = None,
    sort: options.Sort = None,
    hold_out: options.HoldOut = None,
    selection: options.SelectionData = None,
    select_from: options.SelectFrom = None,
    max_drop: options.MaxDropWhile = None,
    run: options.RunFolderOption = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Continue the run in this folder. Only MODEL, --data, --selection and --report "
            "may be given with it.",
            rich_help_panel="Run",
        ),
    ] = None,
    save_seconds: options.SaveSeconds = None,
    log: options.LogTo = None,
    precision: options.Precision = None,
    device: options.Device = "auto",
    devices: options.Devices = 1,
    seed: shared.RecipeSeed = None,
    effort: Annotated[
        str | None,
        typer.Option(
            help="How hard to work on coding: fast, balanced or smallest. \\[default: balanced]"
        ),
    ] = None,
    evaluate: Annotated[
        bool,
        typer.Option("--evaluate", help="Measure accuracy before and after, on the test split."),
    ] = False,
    no_metadata: NoMetadata = False,
    threads: Threads = 0,
    report: shared.ReportFile = None,
    force: Force = False,
    as_json: Json = False,
) -> Outcome:
    """Train a network so that its file is small, and write the file.

    May be interrupted and resumed at any time. The epoch to keep is chosen on held-out training
    samples; the test split is only used by --evaluate.

    Example: fewbits train builtin:digits-cnn --weights fewbits-demo/digits-cnn.safetensors
    --data digits --method hemp --epochs 20 -o digits.fewbits

    Example: fewbits train --resume digits.fewbits.run

    If the network or the data comes from your own code (module:callable), name it again when you
    resume: fewbits train net:build --data net:data --resume DIR. A folder alone cannot cause code
    to be imported.

    ('fewbits demo' writes the weights.)
    """
    loop: _Options = {
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "warm_up": warm_up,
        "clip": clip,
        "relative_clip": relative_clip,
        "distil": distil,
        "temperature": temperature,
        "augment": augment,
        "padding": padding,
        "prune": prune,
        "vector_bits": vector_bits,
        "norms": norms,
        "sort": sort,
    }
    loop |= {"hold_out": hold_out, "select_from": select_from, "max_drop": max_drop}
    sources: _Options = {"model": model, "weights": weights, "data": data, "selection": selection}
    run_options: _Options = {"start": start, "effort": effort, "log": log, "precision": precision}
    run_options |= {"save_seconds": save_seconds, "evaluate": evaluate, "run": run}
    run_options["metadata"] = False if no_metadata else None
    spec: _Options = {"method": method, "settings": settings or [], "recipe": recipe, "seed": seed}
    spec["start"] = start
    if resume is not None:
        given = {"out": out, "weights": weights, **spec, **loop, **run_options}
        options.refuse_beside_resume({**given, "no_metadata": no_metadata})
        request = resume_request(resume, sources)
    else:
        chosen = options.choose_training(loop=loop, **spec)
        request = make_request(out, sources, chosen.to_dict(), run_options, force=force)
    from ..jobs.train import run_training  # noqa: PLC0415  (brings torch)

    placement: _Options = {"device": device, "devices": devices, "threads": threads}
    with progress_bars(quiet=as_json) as progress:
        return run_training(request, resume=resume is not None, progress=progress, **placement)


def make_request(
    out: Path | None,
    sources: _Options,
    recipe: _Options,
    run_options: _Options,
    *,
    force: bool,
) -> RunRequest:
    """Collect the options of a run, with defaults for those not given.

    Raises:
        typer.BadParameter: a required option is missing, or the effort or log is unknown.
        ConfigError: the output cannot be written or would be overwritten.
    """
    if out is None or sources["model"] is None or sources["data"] is None:
        missing = "MODEL" if sources["model"] is None else "--data" if out is not None else "-o"
        raise typer.BadParameter(
            f"{missing} is missing: training needs a network (MODEL), its --data and a file to "
            "write (-o)."
        )
    check_output(out, force)
    folder = run_options.get("run") or out.with_name(f"{out.name}.run")
    if (folder / "last.pt").exists() and not force:
        raise typer.BadParameter(
            f"folder {str(folder)!r} already holds a run. Continue it with --resume {folder}, name "
            "another folder with --run, or start over with --force."
        )
    run_options = {**run_options, "start": options.start_file(run_options.get("start"))}
    chosen = {key: value for key, value in run_options.items() if value is not None}
    chosen["logs"] = tuple(words("--log", chosen.pop("log", "csv")))
    shared.check_effort(str(chosen.get("effort", "balanced")))
    if not set(chosen["logs"]) <= {"csv", "tensorboard"}:
        raise typer.BadParameter("--log must be csv, tensorboard or csv,tensorboard.")
    plain: _Options = {
        k: str(v) if isinstance(v, Path) else v for k, v in {**sources, **chosen}.items()
    }
    plain.pop("run", None)
    plain.setdefault("start", None)
    return RunRequest(recipe=recipe, out=str(out), folder=str(folder), **plain)
