"""``fewbits train``: train a network towards a small file, and write it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from ..console.outcome import Force, Json, NoMetadata, Outcome, Threads, check_output, verb
from ..console.progress import listening
from ..jobs.run_folder import Order, resumed
from ..options import shared
from ..options import training as options
from ..options.shared import words

__all__ = ["order_of", "train"]

Given: TypeAlias = dict[str, Any]

_METHOD = "How to compress"


@verb
def train(
    model: shared.NetworkOrNone = None,
    *,
    out: shared.OutFile = None,
    weights: shared.Weights = None,
    start: Annotated[
        Path | None, typer.Option(help="A .fewbits file to go on from, of the same network.")
    ] = None,
    data: shared.Data = None,
    method: Annotated[
        str | None,
        typer.Option(help="See 'fewbits methods'. \\[default: hemp]", rich_help_panel=_METHOD),
    ] = None,
    settings: shared.MethodSettings = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="YAML file with rules and 'train'.", rich_help_panel=_METHOD),
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
            help="Go on with the run of this folder; only sources may be named again.",
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
        str | None, typer.Option(help="fast, balanced or smallest. \\[default: balanced]")
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Accuracy before and after, on the test split.")
    ] = False,
    no_metadata: NoMetadata = False,
    threads: Threads = 0,
    force: Force = False,
    as_json: Json = False,
) -> Outcome:
    """Train a network so that its file is small, and write the file. Kill it and resume at will.

    The epoch is chosen on training samples that are held out; the test split only reports.

    Example: fewbits train builtin:digits-cnn --weights fewbits-demo/digits-cnn.safetensors
    --data digits --method hemp --epochs 20 -o digits.fewbits

    Example: fewbits train --resume digits.fewbits.run

    A run with a network or data of your own code (module:callable) names it again: fewbits train
    net:build --data net:data --resume DIR. A folder alone has no code imported.

    ('fewbits demo' writes the weights.)
    """
    loop: Given = {
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "warm_up": warm_up,
        "clip": clip,
        "distil": distil,
        "temperature": temperature,
        "augment": augment,
        "padding": padding,
        "prune": prune,
        "vector_bits": vector_bits,
        "norms": norms,
        "sort": sort,
        "hold_out": hold_out,
        "select_from": select_from,
        "max_drop": max_drop,
    }
    sources: Given = {"model": model, "weights": weights, "data": data, "selection": selection}
    means: Given = {"start": start, "effort": effort, "log": log, "precision": precision}
    means |= {"save_seconds": save_seconds, "evaluate": evaluate, "run": run}
    means["metadata"] = False if no_metadata else None
    how: Given = {"method": method, "settings": settings or [], "recipe": recipe, "seed": seed}
    if resume is not None:
        options.refuse_beside_resume(
            {"out": out, "weights": weights, **how, **loop, **means, "no_metadata": no_metadata}
        )
        order = resumed(resume, sources)
    else:
        chosen = options.choose_training(loop=loop, **how)
        order = order_of(out, sources, chosen.to_dict(), means, force=force)
    from ..jobs.train import carry_out  # noqa: PLC0415  (brings torch)

    where: Given = {"device": device, "devices": devices, "threads": threads}
    with listening() as progress:
        return carry_out(order, resume=resume is not None, progress=progress, **where)


def order_of(
    out: Path | None,
    sources: Given,
    recipe: Given,
    means: Given,
    *,
    force: bool,
) -> Order:
    """Return what is to be done, with what was not said at its default.

    Raises:
        typer.BadParameter: something is missing, or no such effort or log.
        ConfigError: an output that could not or should not be written.
    """
    if out is None or sources["model"] is None or sources["data"] is None:
        missing = "MODEL" if sources["model"] is None else "--data" if out is not None else "-o"
        raise typer.BadParameter(f"name {missing}: a network, its data, and the file to write.")
    check_output(out, force)
    folder = means.get("run") or out.with_name(f"{out.name}.run")
    if (folder / "last.pt").exists() and not force:
        raise typer.BadParameter(
            f"folder {str(folder)!r} holds a run. Go on with --resume {folder}, name another with "
            "--run, or start anew with --force."
        )
    chosen = {key: value for key, value in means.items() if value is not None}
    chosen["logs"] = tuple(words("--log", chosen.pop("log", "csv")))
    shared.check_effort(str(chosen.get("effort", "balanced")))
    if not set(chosen["logs"]) <= {"csv", "tensorboard"}:
        raise typer.BadParameter("--log is csv, tensorboard, or csv,tensorboard.")
    plain: Given = {
        k: str(v) if isinstance(v, Path) else v for k, v in {**sources, **chosen}.items()
    }
    plain.pop("run", None)
    plain.setdefault("start", None)
    return Order(recipe=recipe, out=str(out), folder=str(folder), **plain)
