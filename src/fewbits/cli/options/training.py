"""The options of a training, and the recipe that they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from ...errors import ConfigError
from ...search import as_drop
from .budget import quantity
from .choice import for_training
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
    "with_training",
]

_LOOP, _CHOICE, _RUN = "Training", "Which epoch is kept", "Run"


def _option(text: str, panel: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, **more)


Epochs: TypeAlias = Annotated[
    int | None, _option("Passes over the training data. \\[default: 10]", _LOOP, min=1)
]
BatchSize: TypeAlias = Annotated[
    int | None, _option("Samples of one step, all processes. \\[default: 128]", _LOOP, min=1)
]
Accumulate: TypeAlias = Annotated[
    int | None, _option("Micro-batches that make a process's share.", _LOOP, min=1)
]
OptimizerName: TypeAlias = Annotated[
    str | None, _option("sgd or adamw. \\[default: sgd]", _LOOP, "--optimizer")
]
LearningRate: TypeAlias = Annotated[
    float | None,
    _option("At its highest; a cosine down. \\[default: 0.01]", _LOOP, "--learning-rate", "--lr"),
]
Momentum: TypeAlias = Annotated[float | None, _option("\\[default: 0.9]", _LOOP)]
WeightDecay: TypeAlias = Annotated[float | None, _option("\\[default: 0]", _LOOP)]
WarmUp: TypeAlias = Annotated[
    float | None, _option("Share of the training in which the learning rate rises.", _LOOP)
]
Clip: TypeAlias = Annotated[float | None, _option("Largest norm of the gradients.", _LOOP)]
Distil: TypeAlias = Annotated[
    float | None, _option("Share of the loss that follows the float network, 0 to 1.", _LOOP)
]
Temperature: TypeAlias = Annotated[float | None, _option("Of --distil. \\[default: 4]", _LOOP)]
Augment: TypeAlias = Annotated[str | None, _option("flip, crop or flip,crop: of images.", _LOOP)]
Padding: TypeAlias = Annotated[
    int | None, _option("Pixels that crop shifts by. \\[default: an eighth]", _LOOP, min=0)
]
Prune: TypeAlias = Annotated[float | None, _option("Share of the weights to prune by size.", _LOOP)]
VectorBits: TypeAlias = Annotated[
    int | None,
    _option(
        "Biases and scales on grids of so many bits, 2 to 12. \\[default: no grid, 16-bit floats]",
        _LOOP,
    ),
]
Norms: TypeAlias = Annotated[
    str | None, _option("Absorbed ones: absorbed, or live again. \\[default: absorbed]", _LOOP)
]
Sort: TypeAlias = Annotated[
    bool | None, _option("Sort hidden neurons at the end: a smaller file.", _LOOP, "--sort")
]
HoldOut: TypeAlias = Annotated[
    float | None, _option("Share of the training samples to judge on. \\[default: 0.1]", _CHOICE)
]
SelectionData: TypeAlias = Annotated[
    str | None, _option("Labelled data to judge on instead; never the test.", _CHOICE)
]
SelectFrom: TypeAlias = Annotated[
    float | None,
    _option("Choose among the epochs after this share of the training. \\[default: 0.8]", _CHOICE),
]
MaxDropWhile: TypeAlias = Annotated[
    str | None,
    _option(
        "Of the epochs within this drop of accuracy keep the one with the fewest bits, as 0.5% "
        "(points). \\[default: keep the most accurate]",
        _CHOICE,
        "--max-drop",
    ),
]
RunFolderOption: TypeAlias = Annotated[
    Path | None, _option("Folder of checkpoints and logs. \\[default: OUT.run]", _RUN, "--run")
]
SaveSeconds: TypeAlias = Annotated[
    float | None, _option("Between checkpoints within an epoch. \\[default: 300]", _RUN, min=0.0)
]
LogTo: TypeAlias = Annotated[
    str | None, _option("csv, tensorboard or both. \\[default: csv]", _RUN, "--log")
]
Device: TypeAlias = Annotated[str, _option("auto, cpu, cuda or mps.", _RUN)]
Devices: TypeAlias = Annotated[
    int, _option("Devices of this machine; torchrun for more machines.", _RUN, min=1)
]
Precision: TypeAlias = Annotated[
    str | None, _option("float32, bfloat16 or float16. \\[default: float32]", _RUN)
]


def choose_training(
    method: str | None,
    settings: Sequence[str],
    recipe: Path | None,
    loop: Mapping[str, Any],
    seed: int | None,
) -> Recipe:
    """Return the recipe that the options of ``train`` mean; ``loop`` is for its ``train:`` part.

    Raises:
        typer.BadParameter: options that contradict each other, or a method that does not train.
        ConfigError: a recipe file that is not acceptable, or trains nothing.
    """
    from ...methods import post_training_methods, training_methods  # noqa: PLC0415
    from ...recipe.recipe import Recipe  # noqa: PLC0415

    if recipe is not None:
        if method is not None or settings:
            raise typer.BadParameter("--recipe says how: leave out --method and --set.")
        chosen = Recipe.of(str(recipe))
        if chosen.training_stage is None:
            raise ConfigError(
                f"recipe {str(recipe)!r} trains nothing. Add a section 'train' with 'method: hemp' "
                "and 'epochs', or use 'fewbits compress'."
            )
    else:
        if method in post_training_methods():
            raise typer.BadParameter(
                f"{method} does not train. Methods that do: {', '.join(training_methods())}. To "
                f"train after it: fewbits compress --method {method} --epochs N."
            )
        chosen = for_training(method or "hemp", settings)
    return with_training(chosen, loop, seed)


def with_training(chosen: Recipe, loop: Mapping[str, Any], seed: int | None = None) -> Recipe:
    """Return the recipe with the settings that were given; it trains by HEMP if it does not yet.

    Raises:
        typer.BadParameter: a setting out of range.
    """
    from ...methods import HEMP  # noqa: PLC0415
    from ...recipe.training_config import Training  # noqa: PLC0415

    given = {name: value for name, value in loop.items() if value is not None}
    if isinstance(given.get("augment"), str):
        given["augment"] = tuple(words("--augment", given["augment"]))
    if not 0 <= given.get("prune", 0) < 1:
        raise typer.BadParameter(
            "--prune takes a share of the weights, at least 0 and below 1: 0.9 for 90 %. "
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
        made = replace(chosen, train=section)
        return made if seed is None else replace(made, seed=seed)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def refuse_beside_resume(given: Mapping[str, Any]) -> None:
    """Refuse options that the resumed run has settled.

    Raises:
        typer.BadParameter: names the first of them.
    """
    for name, value in given.items():
        if value not in (None, False, []):
            option = "MODEL" if name == "model" else "--" + name.replace("_", "-")
            raise typer.BadParameter(
                f"--resume goes on with what the run was started with: leave out {option!r}. For "
                "other settings start another run."
            )
