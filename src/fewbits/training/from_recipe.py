"""Run the training stage of a recipe: from a network and data to a compressed network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..compression.coded_model import CodedModel
from ..compression.result import CompressionResult
from ..compression.storage.fingerprint import fingerprint
from ..engine.network.copying import copied
from ..errors import CalibrationError, ConfigError
from ..evaluation.metrics import evaluate
from ..methods import trains
from ..progress import Progress, silent
from ..recipe.recipe import Recipe
from ..recipe.training_config import Training
from ..sources import DataSource, Split, held_out
from .against_start import AgainstStart
from .data.augment import FlipAndCrop
from .data.batches import Indexed
from .distillation.losses import CrossEntropy, Distillation, Loss
from .loop.devices import make_fabric
from .loop.loop import Fitted, fit
from .loop.lr_schedules import LRSchedule, PerStage, WarmCosine
from .loop.optimizers import make_optimizer
from .loop.selection import Selection
from .tuner.prepare import prepare
from .tuner.pruning import Magnitude
from .tuner.tuner import Tuner

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["Trained", "train"]

_CALIBRATION = 1024  # training samples for ranges of inputs, and for live BatchNorm layers


@dataclass(frozen=True)
class Trained:
    """The compressed network, which only the main process has, and the result of training.

    With a method that keeps the levels of a compressed start, the start itself is returned as epoch
    0 where training lost more on held-out data than the bytes are worth that it saved.
    """

    coded: CompressionResult | None
    fitted: Fitted


def train(
    model: nn.Module,
    recipe: Recipe,
    data: DataSource,
    *,
    start: CodedModel | str | PathLike[str] | None = None,
    selection: Split | None = None,
    judge: Callable[[nn.Module], float] | None = None,
    calibration: Iterable[Any] | Tensor | None = None,
    folder: str | PathLike[str] | None = None,
    resume: bool = False,
    save_seconds: float = 300.0,
    logs: tuple[str, ...] = ("csv",),
    fabric: Fabric | None = None,
    effort: str = "balanced",
    source: str = "",
    progress: Progress = silent,
) -> Trained:
    """Train ``model`` in place according to the recipe's training stage, and compress it.

    Args:
        model: the float network, which is also the teacher of distillation.
        recipe: a recipe with a training stage. If it has an earlier stage, the caller runs that
            and passes the result as ``start``.
        data: labelled data with a training split; epochs are evaluated on samples held out of it.
        start: a compressed network, or its file, to start from.
        selection: labelled data to evaluate epochs on, instead of held-out training samples.
        judge: ``judge(model) -> score``, higher is better, instead of accuracy on either.
        calibration: batches for ranges of inputs; by default training samples.
        folder: folder for checkpoints and logs; see :func:`fit`.
        resume: continue from the checkpoint in the folder.
        save_seconds: time between checkpoints within an epoch.
        logs: "csv", "tensorboard".
        fabric: devices and precision.
        effort: coding effort.
        source: how to build the network again; stored in the file.
        progress: called after every step.

    Raises:
        ConfigError: the recipe does not train, or a setting is invalid.
        SourceError: the data lacks a split that is needed.
    """
    stage = recipe.training_stage
    if stage is None:
        raise ConfigError("the recipe does not train. Use fewbits.compress, or add 'train'.")
    settings = stage.train or Training()
    training, judge = _splits(stage, data, selection, judge)
    fabric = fabric or make_fabric()
    fabric.to_device(model)
    key = _key(model, recipe, training)
    # Every process evaluates: the float network is the same in all of them.
    reference = None if judge is None else judge(model)
    teacher = copied(model).eval() if settings.distil else None
    tuner = prepare(
        model,
        stage,
        start=start,
        prune=Magnitude(share=settings.prune) if settings.prune else None,
        vector_bits=settings.vector_bits,
        norms=settings.norms,
        source=source,
        calibration=_calibration(stage, training, settings) if calibration is None else calibration,
    )
    against = _against(start, tuner, stage, judge)
    fitted = fit(
        tuner,
        _loss(teacher, settings),
        training if isinstance(training, Indexed) else _batches(training, settings),
        judge=judge,
        reference=reference,
        folder=folder,
        resume=resume,
        save_seconds=save_seconds,
        logs=logs,
        seed=recipe.seed,
        key=key,
        fabric=fabric,
        progress=progress,
        **_fit_arguments(tuner, settings),
    )
    coded = _with_recipe(tuner.finish(effort, sort=settings.sort), recipe) if fitted.main else None
    return _ended(coded, fitted, stage, model, against)


def _against(
    start: CodedModel | str | PathLike[str] | None,
    tuner: Tuner,
    stage: Recipe,
    judge: Callable[[nn.Module], float] | None,
) -> AgainstStart | None:
    """Measure the start if the method goes on with its levels, so that both ends compare."""
    methods = [rule.method for rule in stage.rules if trains(rule.method)]
    if start is None or not any(method.capabilities.keeps_levels for method in methods):
        return None
    loss = judge.loss if isinstance(judge, _Accuracy) else None
    max_drop = None if stage.train is None else stage.train.max_drop
    return AgainstStart.before(start, tuner, judge, loss, max_drop)


def _ended(
    coded: CompressionResult | None,
    fitted: Fitted,
    stage: Recipe,
    model: nn.Module,
    against: AgainstStart | None,
) -> Trained:
    """Return the trained network or its start, whichever is worth more, with notes."""
    if coded is None:
        return Trained(None, fitted)
    if against is not None:
        return Trained(*against.chosen(coded, fitted, model))
    told = {rule.method.note_from_floats for rule in stage.rules if trains(rule.method)}
    notes = tuple(note for note in sorted(told) if note)  # of methods that could have had a start
    if notes:
        coded = replace(coded, notes=(*coded.notes, *notes))
    return Trained(coded, fitted)


def _splits(
    stage: Recipe,
    data: DataSource,
    selection: Split | None,
    judge: Callable[[nn.Module], float] | None,
) -> tuple[Split, Callable[[nn.Module], float] | None]:
    """Return the training split, and the score of epochs: the caller's, or accuracy on a split."""
    if judge is not None:
        return data.split("train"), judge
    if selection:
        training = data.split("train")
    else:
        training, selection = held_out(data, _share(stage))
    batch_size = (stage.train or Training()).batch_size
    return training, None if selection is None else _Accuracy(selection, batch_size)


@dataclass(frozen=True)
class _Accuracy:
    """Accuracy on one split, as a function of the network."""

    split: Split
    batch_size: int

    def __call__(self, model: nn.Module) -> float:
        return evaluate(model, self.split.batches(self.batch_size, None, None)).accuracy

    def loss(self, model: nn.Module) -> float:
        """Return the cross-entropy on the same samples, which tells more than their accuracy."""
        return evaluate(model, self.split.batches(self.batch_size, None, None)).loss


def _with_recipe(coded: CompressionResult, recipe: Recipe) -> CompressionResult:
    """Return the network with the whole recipe in its file, including earlier stages."""
    metadata = {**coded.contents.metadata, "recipe": recipe.to_dict()}
    return replace(coded, contents=replace(coded.contents, metadata=metadata))


def _fit_arguments(tuner: Tuner, settings: Training) -> dict[str, Any]:
    """Return the arguments of :func:`fit` that follow from the recipe."""
    optimizer = make_optimizer(
        tuner,
        settings.optimizer,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    start = max(settings.select_from, tuner.selectable_from)
    return {
        "epochs": settings.epochs,
        "optimizer": optimizer,
        "batch_size": settings.batch_size,
        "accumulate": settings.accumulate,
        "lr_schedule": _lr_schedule(tuner, settings),
        "clip": settings.clip,
        "relative_clip": settings.relative_clip or None,
        "augment": _augment(settings),
        "selection": Selection(start=start, max_drop=settings.max_drop),
    }


def _lr_schedule(tuner: Tuner, settings: Training) -> LRSchedule:
    """Return the learning rate schedule, which restarts at every stage of the method."""
    schedule = WarmCosine(warm_up=settings.warm_up)
    ends = tuner.stage_ends
    return PerStage(schedule, ends) if len(ends) > 1 else schedule


def _calibration(recipe: Recipe, training: Split, settings: Training) -> list[Any] | None:
    """Return training batches for quantized inputs or live BatchNorm layers; otherwise None."""
    methods = [rule.method for rule in recipe.rules]
    inputs = any(trains(method) and method.needs_calibration for method in methods)
    if not inputs and settings.norms != "live":
        return None
    return list(training.batches(settings.batch_size, _CALIBRATION, recipe.seed))


def _batches(training: Split, settings: Training) -> Iterable[Any]:
    return training.batches(settings.batch_size, None, None)


def _share(recipe: Recipe) -> float | None:
    return None if recipe.train is None else recipe.train.hold_out


def _loss(teacher: nn.Module | None, settings: Training) -> Loss:
    if teacher is None:
        return CrossEntropy()
    return Distillation(teacher, settings.distil, settings.temperature)


def _augment(settings: Training) -> FlipAndCrop | None:
    if not settings.augment:
        return None
    padding = settings.padding if "crop" in settings.augment else 0
    return FlipAndCrop(flip="flip" in settings.augment, padding=padding)


def _key(model: nn.Module, recipe: Recipe, training: Split) -> str:
    """Return a fingerprint of network, recipe and the first training batch."""
    first = next(iter(training.batches(64, 64, None)), None)
    if first is None:
        raise CalibrationError("the training data is empty: it holds no batch.")
    parts: list[Any] = list(first) if isinstance(first, (tuple, list)) else [first]
    tensors = [("", part) for part in parts if isinstance(part, Tensor)]
    count = len(training) if isinstance(training, Indexed) else math.nan
    return fingerprint([*model.state_dict().items(), *tensors], recipe.to_dict(), str(count))
