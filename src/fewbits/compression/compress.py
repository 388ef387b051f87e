"""Compress a network without training: check the request, then run it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..coding import EFFORTS, is_effort
from ..engine.activations.hooks import count_inputs
from ..engine.layers.targets import check_finite
from ..engine.network.batches import Forward, as_batches, as_forward
from ..engine.network.copying import copied
from ..engine.network.distributed import active
from ..engine.network.padding import Mask, as_mask
from ..engine.paged.paging import Pager
from ..errors import ConfigError, LossWarning, require
from ..methods import Activations, AnyMethod, TrainingMethod
from ..pretrained import files_of
from ..progress import Progress
from ..recipe.plan import Plan, make_plan
from ..recipe.recipe import PREPARE, Recipe
from ..recipe.training_config import Training
from ..search import Goal
from .budget import Budget
from .coded_model import unwrapped
from .pipeline import Pipeline
from .result import BaseWeights, CompressionResult
from .start_levels import Start, StartLevels
from .storage.fingerprint import facts_of, fingerprint, fingerprint_run
from .storage.workspace import Workspace

__all__ = ["Request", "compress_network", "plan_request"]

_SEARCH = "search.json"  # in the folder to resume from
_USER = 5  # frames from a check to the caller of fewbits.compress


@dataclass(frozen=True, kw_only=True)
class Request:
    """The arguments of :func:`fewbits.compress`, checked.

    ``start`` is as it was given; ``levels`` are those of it that are kept without training.
    """

    model: nn.Module
    recipe: Recipe
    calibration: Iterable[Any] | Tensor | None
    forward: Forward | None
    mask: Mask
    goal: Goal | None
    budget: Mapping[str, Any]
    effort: str
    threads: int
    source: str
    metadata: bool
    max_live_bytes: int
    progress: Progress
    pager: Pager | None = None
    resume: str | PathLike[str] | None = None
    base: BaseWeights | None = None
    start: Start | None = None
    levels: StartLevels | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        method: AnyMethod | Recipe | Mapping[str, Any] | str | PathLike[str],
        calibration: Iterable[Any] | Tensor | None,
        *,
        mask: Mask | None,
        budget: Mapping[str, Any],
        seed: int | None,
        activations: Activations | int | None,
        training: Training | Mapping[str, Any] | None,
        weights: str | PathLike[str] | None = None,
        resume: str | PathLike[str] | None = None,
        base: BaseWeights | None = None,
        start: Start | None = None,
        **others: Any,
    ) -> Request:
        """Check everything that can be checked before any work is done.

        Raises:
            ConfigError: an argument is out of range.
            ModelError: NaN or infinite weights.
        """
        _check_arguments(model, **others)
        Workspace.of(None, resume)
        goal = Goal.of(budget["target_bytes"], budget["target_bits"], budget["max_drop"])
        model, pager = unwrapped(model), None
        if weights is not None:
            in_memory = "None with base=: both networks are compared in memory"
            require(base is None, "weights", in_memory, weights)
            model, pager = _on_disk(model, weights)
        recipe = Recipe.of(method, calibrated=calibration is not None, begins=start is None)
        recipe = _changed(recipe, seed, activations, training)
        _check_recipe(recipe, {"weights": weights, "resume": resume, "base": base})
        if base is not None:
            recipe = _for_delta(recipe)
        plan = make_plan(model, recipe)
        if not recipe.lossless:
            check_finite(model, _touch(pager))
        levels = None if start is None else _levels_of(start, model, plan, goal, base)
        if levels is not None:
            recipe = replace(recipe, prepare=PREPARE if levels.absorbed else ())
        if count := count_inputs(model):
            warnings.warn(
                f"{count} inputs or outputs of layers were quantized by a file that was loaded. "
                "The new file leaves them in float; pass activations= to quantize them again.",
                LossWarning,
                stacklevel=_USER,
            )
        return cls(
            model=model,
            recipe=recipe,
            calibration=calibration,
            mask=as_mask(mask),
            goal=goal,
            budget={k: budget[k] for k in ("evaluate", "evaluations", "time_budget", "trace")},
            pager=pager,
            resume=resume,
            base=base,
            start=start,
            levels=levels,
            **others,
        )


def compress_network(request: Request) -> CompressionResult:
    """Compress a copy of the network, as the recipe says or within the budget.

    Inside of :func:`~fewbits.engine.network.distributed.shared_work`, with the other ranks.
    """
    model, calibration = request.model, request.calibration
    if calibration is not None:
        calibration = as_batches(calibration, model if request.forward is None else None)
    if active().count > 1:
        active().compare("compress", _facts(request, calibration))
    memory: dict[str, Any] | None = None if request.goal is None else {}
    source = _stored(request.source)
    keys = _Keys(request, calibration)

    def run(recipe: Recipe) -> CompressionResult:
        pipeline = _pipeline(request, recipe, calibration, memory, keys.of(recipe))
        result = pipeline.run(model, source)
        result = replace(result, effort=request.effort, network_files=files_of(unwrapped(model)))
        if not request.metadata:
            return result.without_metadata()
        plain = recipe.lossless or request.base is not None
        return result if plain else result.with_skip_reason()

    if request.goal is None:
        _check_no_search_options(request.budget)
        coded = run(request.recipe)
    else:
        coded = _budget(request, request.goal).meet(
            model,
            request.recipe,
            run,
            calibration,
            settled=lambda r: _pipeline(request, r, calibration, memory).settled(model),
            progress=request.progress,
            touch=_touch(request.pager),
        )
    if not request.recipe.lossless:
        coded.warn_low_coverage(stacklevel=_USER)
    return coded


def _pipeline(
    request: Request,
    recipe: Recipe,
    calibration: Sequence[Any] | None,
    memory: dict[str, Any] | None,
    journal: tuple[str, Path | None] = ("", None),
) -> Pipeline:
    """Return the run of a recipe; ``journal`` are its key and the folder to resume from."""
    key, folder = journal
    return Pipeline(
        make_plan(request.model, recipe),
        calibration,
        request.forward,
        request.mask,
        request.max_live_bytes,
        request.progress,
        memory,
        Workspace.of(request.pager, folder if active().first else None),
        key,
        active(),
        request.base,
        request.levels,
    )


def plan_request(
    model: nn.Module,
    method: AnyMethod | Recipe | Mapping[str, Any] | str | PathLike[str],
    calibrated: bool,
    weights: str | PathLike[str] | None = None,
    start: Start | None = None,
) -> tuple[Plan, TrainingMethod | None]:
    """Return the plan of a recipe, and its training method if there is one."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module. Got {type(model).__name__} instead.")
    model = unwrapped(model)
    if weights is not None:
        model, _ = _on_disk(model, weights)
    plan = make_plan(model, Recipe.of(method, calibrated))
    training = next((entry.trained for entry in plan.entries if entry.trained), None)
    if start is not None and training is None:
        plan = StartLevels.of(start, model, plan).planned(plan)
    return plan, training


def _budget(request: Request, goal: Goal) -> Budget:
    options = request.budget
    if request.resume is not None and options["trace"] is None:
        options = {**options, "trace": Path(request.resume) / _SEARCH}
    how: dict[str, Any] = {"effort": request.effort, "threads": request.threads}
    return Budget(goal, **options, **how, ranks=active(), others=_others(request))


def _others(request: Request) -> tuple[str, ...]:
    """Return fingerprints of the other networks that the result depends on."""
    others = (request.base, request.levels)
    return tuple(other.fingerprint for other in others if other is not None)


def _facts(request: Request, calibration: Sequence[Any] | None) -> dict[str, str]:
    """Return what all ranks must have in common, by what it is called in messages."""
    budget, touch = request.budget, _touch(request.pager)
    return {
        "recipe": fingerprint((), request.recipe.to_dict()),
        "target": str(request.goal),
        "evaluate=": str(budget["evaluate"] is not None),
        "evaluations=": str(budget["evaluations"]),
        "time_budget=": str(budget["time_budget"]),
        "forward=": str(request.forward is not None),
        "effort=": request.effort,
        "base=": "" if request.base is None else request.base.fingerprint,
        "start=": "" if request.levels is None else request.levels.fingerprint,
        **facts_of(request.model, calibration or (), touch),
    }


class _Keys:
    """What identifies each run in the folder to resume from, and its part of that folder."""

    def __init__(self, request: Request, calibration: Sequence[Any] | None) -> None:
        self._folder = None if request.resume is None else Path(request.resume)
        self._searches = request.goal is not None
        self._base = ""
        if self._folder is not None:
            touch = _touch(request.pager)
            self._base = fingerprint_run(request.model, calibration or (), touch)
            self._base += "".join(_others(request))
            if active().first:
                self._folder.mkdir(parents=True, exist_ok=True)

    def of(self, recipe: Recipe) -> tuple[str, Path | None]:
        """Return the key of a recipe, and the folder of its journal; None to keep none."""
        if self._folder is None:
            return "", None
        key = fingerprint((), self._base, recipe.to_dict())
        return key, self._folder / key if self._searches else self._folder


def _touch(pager: Pager | None) -> Callable[[int], None]:
    """Return a function to call before a weight is read; it does nothing for those in memory."""
    return (lambda size: None) if pager is None else pager.touch


def _on_disk(model: nn.Module, weights: str | PathLike[str]) -> tuple[nn.Module, Pager]:
    """Return a copy of ``model`` whose weights are those of a checkpoint, read when used."""
    from ..sources.checkpoints.mapped import attach, map_checkpoint  # noqa: PLC0415

    require(isinstance(weights, (str, PathLike)), "weights", "a path", weights)
    network, pager = copied(model), Pager()
    attach(network, map_checkpoint(fspath(weights)), pager)
    return network, pager


def _stored(source: str) -> str:
    if not source:
        return ""
    from ..sources.base.spec import stored_source  # noqa: PLC0415  (not needed without a source)

    return stored_source(source)


def _changed(
    recipe: Recipe,
    seed: int | None,
    activations: Activations | int | None,
    training: Training | Mapping[str, Any] | None,
) -> Recipe:
    """Return the recipe with what else was asked for; None leaves it as it is."""
    if seed is not None:
        recipe = replace(recipe, seed=seed)
    if activations is not None:
        recipe = replace(recipe, activations=Activations.of(activations))
    if training is not None:
        recipe = replace(recipe, train=_settings(training, recipe))
    return recipe


def _settings(training: Training | Mapping[str, Any], recipe: Recipe) -> Training:
    """Return the settings asked for; the method that the recipe trains with stays."""
    settings = Training.of(training)
    if settings.method is None and recipe.train is not None:
        settings = replace(settings, method=recipe.train.method)
    return settings


def _check_no_search_options(options: Mapping[str, Any]) -> None:
    for name in ("evaluate", "time_budget", "trace"):
        if options[name] is not None:
            raise ConfigError(
                f"{name}= only applies to a search for a budget. Add target_bytes=, target_bits= "
                "or max_drop=."
            )


def _for_delta(recipe: Recipe) -> Recipe:
    """Return the recipe of a delta, which tells the network's own weights and all else exactly."""
    if recipe.activations is not None:
        raise ConfigError(
            "a delta has weights only: base= cannot be combined with quantized activations. Leave "
            "one of them out."
        )
    return replace(recipe, prepare=(), raw_dtype="exact")


def _levels_of(
    start: Start, model: nn.Module, plan: Plan, goal: Goal | None, base: BaseWeights | None
) -> StartLevels | None:
    """Return the levels that weights get; None where a training begins at the start itself."""
    _check_start(plan.recipe, goal, base)
    if plan.recipe.training_stage is not None:
        return None
    levels = StartLevels.of(start, model, plan)
    levels.warn(activations=plan.recipe.activations is not None, stacklevel=_USER + 1)
    return levels


def _check_start(recipe: Recipe, goal: Goal | None, base: BaseWeights | None) -> None:
    """Refuse what a start cannot be combined with."""
    if recipe.training_stage is not None:
        if recipe.first_stage is not None:
            raise ConfigError(
                "the recipe compresses before it trains, and start= is where a training begins. "
                "Leave start= out, or take the training alone: the method, or a recipe that names "
                "it in its rules."
            )
        return
    if base is not None:
        raise ConfigError(
            "base= quantizes differences of weights, which have no levels in start=. Leave one of "
            "them out."
        )
    sloped = [rule for rule in recipe.rules if rule.method and rule.method.capabilities.has_slope]
    if goal is not None and not sloped:
        raise ConfigError(
            "a budget varies the slope of a method or its number of levels, but levels are those "
            "of start=, and the recipe has no method with a slope. Use RDOQ, or leave the budget "
            "out."
        )


def _check_recipe(recipe: Recipe, given: Mapping[str, object]) -> None:
    for name, value in given.items():
        if value is not None and recipe.training_stage is not None:
            raise ConfigError(
                f"{name}= cannot be combined with a method that trains: training needs the network "
                "in memory, and 'fewbits train --resume' continues one. Load the weights into the "
                "network first, and take a delta of what was trained."
            )


def _check_arguments(
    model: object,
    *,
    forward: Forward | None,
    effort: object,
    source: object,
    max_live_bytes: object,
    progress: object,
    **_: object,
) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module. Got {type(model).__name__} instead.")
    as_forward(forward)
    require(is_effort(effort), "effort", f"one of {', '.join(EFFORTS)}", effort)
    require(callable(progress), "progress", "a function of a ProgressEvent", progress)
    require(isinstance(source, str), "source", "a string such as 'module:callable'", source)
    bounded = isinstance(max_live_bytes, int) and max_live_bytes >= 0
    require(bounded, "max_live_bytes", "a number of bytes >= 0", max_live_bytes)
