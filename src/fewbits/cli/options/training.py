"""Training options, and the recipe that they describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from ...errors import ConfigError, shorten
from ...search import as_drop
from .budget import quantity
from .choice import read_recipe, recipe_for_training
from .shared import words

if TYPE_CHECKING:
    from ...recipe.recipe import Recipe

__all__ = [
    "Accumulate",
    "Augment",
    "BatchSize",
    "Clip",
    "Device",
    "Devices",
    "Distil",
    "Epochs",
    "HoldOut",
    "LearningRate",
    "LogTo",
    "MaxDropWhile",
    "Momentum",
    "Norms",
    "OptimizerName",
    "Padding",
    "Precision",
    "Prune",
    "RelativeClip",
    "RunFolderOption",
    "SaveSeconds",
    "SelectFrom",
    "SelectionData",
    "Sort",
    "Temperature",
    "VectorBits",
    "WarmUp",
    "WeightDecay",
    "choose_training",
    "refuse_beside_resume",
    "start_file",
    "with_training",
]

_LOOP, _CHOICE, _RUN = "Training", "Which epoch is kept", "Run"


def _option(text: str, panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


Epochs: TypeAlias = Annotated[
    int | None, _option("Passes over the training data. \\[default: 10]", _LOOP, min=1)
]
BatchSize: TypeAlias = Annotated[
    int | None, _option("Samples per step, over all processes. \\[default: 128]", _LOOP, min=1)
]
Accumulate: TypeAlias = Annotated[
    int | None, _option("Micro-batches per step and process. \\[default: 1]", _LOOP, min=1)
]
OptimizerName: TypeAlias = Annotated[
    str | None, _option("sgd or adamw. \\[default: sgd]", _LOOP, "--optimizer")
]
LearningRate: TypeAlias = Annotated[
    float | None,
    _option(
        "Peak learning rate; it then falls along a cosine. \\[default: 0.01]",
        _LOOP,
        "--learning-rate",
        "--lr",
    ),
]
Momentum: TypeAlias = Annotated[
    float | None, _option("Momentum of the optimizer. \\[default: 0.9]", _LOOP)
]
WeightDecay: TypeAlias = Annotated[
    float | None, _option("Weight decay of the optimizer. \\[default: 0]", _LOOP)
]
WarmUp: TypeAlias = Annotated[
    float | None,
    _option("Share of the training during which the learning rate rises. \\[default: 0]", _LOOP),
]
Clip: TypeAlias = Annotated[
    float | None, _option("Clip the norm of the gradients to this. \\[default: no clipping]", _LOOP)
]
RelativeClip: TypeAlias = Annotated[
    float | None,
    _option(
        "Clip the gradient of each weight to this share of the norm of its tensor; 0 for no limit. "
        "\\[default: 0.1]",
        _LOOP,
    ),
]
Distil: TypeAlias = Annotated[
    float | None,
    _option(
        "Weight of distillation from the float network in the loss, 0 to 1. \\[default: 0]", _LOOP
    ),
]
Temperature: TypeAlias = Annotated[
    float | None, _option("Temperature of --distil. \\[default: 4]", _LOOP)
]
Augment: TypeAlias = Annotated[
    str | None, _option("Augmentation of images: flip, crop or flip,crop.", _LOOP)
]
Padding: TypeAlias = Annotated[
    int | None,
    _option("Largest shift of a crop in pixels. \\[default: an eighth of the side]", _LOOP, min=0),
]
Prune: TypeAlias = Annotated[
    float | None,
    _option("Share of the weights to prune, the smallest first. \\[default: 0]", _LOOP),
]
VectorBits: TypeAlias = Annotated[
    int | None,
    _option(
        "Quantize biases and scales to this many bits, 2 to 12. \\[default: 16-bit floats]",
        _LOOP,
    ),
]
Norms: TypeAlias = Annotated[
    str | None,
    _option(
        "BatchNorm layers that compression absorbed: absorbed keeps them so, live trains them "
        "again. \\[default: absorbed]",
        _LOOP,
    ),
]
Sort: TypeAlias = Annotated[
    bool | None,
    _option("Sort hidden neurons at the end, which makes the file smaller.", _LOOP, "--sort"),
]
HoldOut: TypeAlias = Annotated[
    float | None,
    _option(
        "Share of the training samples held out to evaluate epochs on. \\[default: 0.1]", _CHOICE
    ),
]
SelectionData: TypeAlias = Annotated[
    str | None,
    _option("Labelled data to evaluate epochs on instead; never the test data.", _CHOICE),
]
SelectFrom: TypeAlias = Annotated[
    float | None,
    _option("Consider only the epochs after this share of the training. \\[default: 0.8]", _CHOICE),
]
MaxDropWhile: TypeAlias = Annotated[
    str | None,
    _option(
        "Keep the epoch with the fewest bits among those that lose at most this much accuracy: "
        "0.5% means half a percentage point. \\[default: keep the most accurate]",
        _CHOICE,
        "--max-drop",
    ),
]
RunFolderOption: TypeAlias = Annotated[
    Path | None, _option("Folder for checkpoints and logs. \\[default: OUT.run]", _RUN, "--run")
]
SaveSeconds: TypeAlias = Annotated[
    float | None,
    _option("Seconds between checkpoints within an epoch. \\[default: 300]", _RUN, min=0.0),
]
LogTo: TypeAlias = Annotated[
    str | None,
    _option("Log metrics to csv, tensorboard or csv,tensorboard. \\[default: csv]", _RUN, "--log"),
]
Device: TypeAlias = Annotated[str, _option("Device to train on: auto, cpu, cuda or mps.", _RUN)]
Devices: TypeAlias = Annotated[
    int,
    _option("Number of devices on this machine; for several machines use torchrun.", _RUN, min=1),
]
Precision: TypeAlias = Annotated[
    str | None,
    _option("Precision to train in: float32, bfloat16 or float16. \\[default: float32]", _RUN),
]


def choose_training(
    *,
    method: str | None,
    settings: Sequence[str],
    recipe: str | None,
    loop: Mapping[str, Any],
    seed: int | None,
    start: str | None,
) -> Recipe:
    """Build the recipe described by the options of ``train``; ``loop`` goes into its ``train:``.

    ``start`` is the recipe that comes before the training, "float" for none, or a file.

    Raises:
        typer.BadParameter: options that contradict each other, or a method that does not train.
        ConfigError: the recipe file is invalid or does not train.
    """
    from ...methods import post_training_methods, training_methods  # noqa: PLC0415

    if recipe is not None:
        if method is not None or settings:
            raise typer.BadParameter("--recipe replaces --method and --set: leave them out.")
        if start is not None and start_file(start) is None:
            raise typer.BadParameter(
                "--recipe says what comes before the training: give it with --start FILE, or "
                f"without. Got --start {shorten(start)}."
            )
        chosen = read_recipe(recipe)
        if chosen.training_stage is None:
            raise ConfigError(
                f"recipe {str(recipe)!r} does not train. Add a section 'train' with 'method: hemp' "
                "and 'epochs', or use 'fewbits compress'."
            )
    else:
        if method in post_training_methods():
            raise typer.BadParameter(
                f"{method} does not train. Methods that do: {', '.join(training_methods())}. To "
                f"train after {method}: fewbits compress --method {method} --epochs N."
            )
        chosen = recipe_for_training(method or "hemp", settings, start)
    return with_training(chosen, loop, seed)


def start_file(start: str | None) -> Path | None:
    """Return the file to start from; None for "float", the name of a recipe, or no ``start``.

    Raises:
        typer.BadParameter: the recipe changes no weight.
    """
    from ...recipe.recipe import RECIPES  # noqa: PLC0415

    if start is None or start == "float":
        return None
    if start not in RECIPES:
        return Path(start)
    if RECIPES[start].lossless:
        raise typer.BadParameter(f"the recipe {start!r} quantizes nothing: take --start float.")
    return None


def with_training(chosen: Recipe, loop: Mapping[str, Any], seed: int | None = None) -> Recipe:
    """Return the recipe with the given training settings; by default it trains with HEMP.

    Raises:
        typer.BadParameter: a setting is out of range.
    """
    from ...methods import HEMP  # noqa: PLC0415
    from ...recipe.training_config import Training  # noqa: PLC0415

    given = {name: value for name, value in loop.items() if value is not None}
    if isinstance(given.get("augment"), str):
        given["augment"] = tuple(words("--augment", given["augment"]))
    if not 0 <= given.get("prune", 0) < 1:
        raise typer.BadParameter(
            "--prune takes a share of the weights, at least 0 and below 1, such as 0.9 for 90%. "
            f"Got {given['prune']:g}."
        )
    if "max_drop" in given:
        given["max_drop"] = quantity(as_drop, given["max_drop"], "--max-drop")
    try:
        if chosen.train is not None:
            section = replace(chosen.train, **given)
        elif chosen.first_stage is None:
            section = Training(**given)
        else:
            section = Training(method=HEMP(), **given)
        chosen = replace(chosen, train=section)
        return chosen if seed is None else replace(chosen, seed=seed)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def refuse_beside_resume(given: Mapping[str, Any]) -> None:
    """Refuse options that a resumed run cannot change.

    Raises:
        typer.BadParameter: names the first of them.
    """
    for name, value in given.items():
        if value not in (None, False, []):
            option = "MODEL" if name == "model" else "--" + name.replace("_", "-")
            raise typer.BadParameter(
                f"--resume continues with the options of the run: leave out {option!r}. To change "
                "options, start another run."
            )
