"""Compress and load: the only orchestration. Everything else is a part that it puts together."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from os import PathLike, fspath
from typing import Any, overload

import torch
from torch import Tensor, nn

from .coding import EFFORTS, is_effort
from .compression.budget import Budget, Evaluate
from .compression.coded_model import CodedModel, load_into, state_dict, unwrapped
from .compression.pipeline import Pipeline
from .container import read_lazily, read_tensor
from .engine.activations.hooks import check_inputs, count_inputs, load_inputs
from .engine.layers.pack import to_torch
from .engine.layers.targets import check_finite
from .engine.layers.transform_domain import into_transform_domain
from .engine.network.batches import Forward, as_batches, as_forward
from .engine.network.copying import copied
from .engine.network.naming import fit_names, fit_sites
from .errors import ConfigError, LossWarning, require
from .methods import Activations, Method
from .progress import Progress, silent
from .recipe.plan import Plan, make_plan
from .recipe.recipe import Recipe
from .search import Goal

__all__ = ["compress", "load", "load_tensor", "plan"]

HowToCompress = Method | Recipe | Mapping[str, Any] | str | PathLike[str]


@torch.inference_mode(False)  # copies of a network that may need gradients are made inside
def compress(
    model: nn.Module,
    method: HowToCompress,
    calibration: Iterable[Any] | Tensor | None = None,
    forward: Forward | None = None,
    *,
    target_bytes: float | None = None,
    target_bits: float | None = None,
    max_drop: float | None = None,
    evaluate: Evaluate | None = None,
    evaluations: int = 12,
    seconds: float | None = None,
    trace: str | PathLike[str] | None = None,
    effort: str = "balanced",
    threads: int = 0,
    seed: int | None = None,
    activations: Activations | int | None = None,
    source: str = "",
    metadata: bool = True,
    max_live_bytes: int = 1 << 30,
    progress: Progress = silent,
) -> CodedModel:
    """Compress a trained network; ``model`` itself stays as it is.

    With one of ``target_bytes``, ``target_bits`` and ``max_drop`` the slope (squared output error
    that a bit is worth) is searched: every rule whose method has one gets the same, and the best
    file within the budget is returned. An evaluation costs one compression and one encoding.

    Args:
        model: any ``nn.Module``; works on copies in eval mode, without tracing.
        method: a method for all weights (``fewbits.GPFQ(bits=4)``), a :class:`Recipe`, or the path
            of a recipe file.
        calibration: an iterable of batches (tensors, tuples such as (inputs, labels), dicts), or
            one tensor of stacked samples. Needed by methods that look at activations. Never pass
            evaluation data.
        forward: ``forward(model, batch)`` calls the network where the default would not do.
        target_bytes: the file's length is at most this, and met within 1 % where sizes allow.
        target_bits: the same, of all bits of the file over the quantized weights.
        max_drop: the smallest file whose score is at most this far below the float network's.
        evaluate: ``evaluate(model) -> score``, higher is better, on *selection* data: neither that
            of calibration nor that which is reported. ``max_drop`` needs it; others note it.
        evaluations: bound on the evaluations, those of a resumed trace included.
        seconds: bound on the time: no evaluation starts that would likely end later.
        trace: file that keeps every evaluation, as JSON; an existing one is resumed.
        effort: of encoding, by which sizes are measured and which ``save`` then uses.
        threads: that encode during a search, as in :meth:`CodedModel.encode`.
        seed: of every random choice; overrides the recipe's.
        activations: bits of the inputs of quantized layers, or ``fewbits.Activations(...)``: ranges
            are from calibration data, after the weights; None for floats, or what a recipe says.
        source: how to build the network again ("module:callable"), kept in the file.
        metadata: whether the file tells recipe and source, some 50 to 300 bytes.
        max_live_bytes: bound on the activations held by suspended forward passes; batches beyond
            it are run again for every layer.
        progress: told of every layer that is done.

    Returns:
        The compressed network: save it, print its size report, or read its state dict. After a
        search, its ``trace`` tells what was tried.

    Raises:
        ConfigError: a setting or recipe (TargetError: a pattern that matches nothing).
        ModelError: NaN or infinite weights, or a network that cannot be copied or written.
        CalibrationError: calibration data missing, empty, not finite, or a forward that raises.
        BudgetError: no file that was evaluated is within the budget.
    """
    _check_arguments(model, forward, source, max_live_bytes, progress)
    require(is_effort(effort), "effort", f"one of {', '.join(EFFORTS)}", effort)
    goal = Goal.of(target_bytes, target_bits, max_drop)
    model = unwrapped(model)
    recipe = Recipe.of(method, calibrated=calibration is not None)
    if seed is not None:
        recipe = replace(recipe, seed=seed)
    if activations is not None:
        recipe = replace(recipe, activations=Activations.of(activations))
    _check_untrained(make_plan(model, recipe))
    check_finite(model)
    if count := count_inputs(model):
        warnings.warn(
            f"{count} inputs or outputs of layers are quantized, by a file that was loaded. They "
            "are in float in the new one; activations= quantizes them again.",
            LossWarning,
            stacklevel=3,
        )
    memory: dict[str, Any] | None = None if goal is None else {}

    def run(recipe: Recipe) -> CodedModel:
        steps = make_plan(model, recipe)
        pipeline = Pipeline(steps, calibration, forward, max_live_bytes, progress, memory)
        made = replace(pipeline.run(copied(model).eval(), _stored(source)), effort=effort)
        return made.explained() if metadata else made.without_metadata()

    if goal is None:
        _check_no_goal(evaluate, seconds, trace)
        return _covering(run(recipe))
    budget = Budget(goal, evaluate, evaluations, seconds, trace, effort, threads)
    if calibration is not None:
        calibration = as_batches(calibration, model if forward is None else None)
    return _covering(budget.meet(model, recipe, run, calibration, progress))


def plan(model: nn.Module, method: HowToCompress, *, calibrated: bool = True) -> Plan:
    """Return what :func:`compress` would do with every tensor, without doing it.

    ``calibrated`` tells whether there will be calibration data, as in :meth:`Recipe.of`. Layers
    that calibration does not reach are known only after it.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module. Got {type(model).__name__} instead.")
    model = unwrapped(model)
    made = make_plan(model, Recipe.of(method, calibrated))
    trained = next((entry.trained for entry in made.entries if entry.trained), None)
    if trained is None:
        return made
    from .training.tuner.trained_plan import as_trained  # noqa: PLC0415  (seconds, for training only)

    return as_trained(model, made, trained)


@overload
def load(
    path: str | PathLike[str],
    into: None = None,
    *,
    max_decoded_bytes: int | None = None,
    threads: int = 0,
) -> dict[str, Tensor]: ...
@overload
def load(
    path: str | PathLike[str],
    into: nn.Module,
    *,
    max_decoded_bytes: int | None = None,
    threads: int = 0,
    transform_domain: bool = False,
) -> nn.Module: ...
def load(
    path: str | PathLike[str],
    into: nn.Module | None = None,
    *,
    max_decoded_bytes: int | None = None,
    threads: int = 0,
    transform_domain: bool = False,
) -> dict[str, Tensor] | nn.Module:
    """Read a file: into a network, which is returned, or as a plain state dict.

    Tensors are decoded one at a time: beyond the values themselves it takes some 64 MiB and 16
    bytes for each weight of the largest tensor.

    Args:
        path: a file that :meth:`CodedModel.save` wrote.
        into: a network of the same architecture; its values are replaced, all or none. Its names
            may differ by what wraps a network: DataParallel, torch.compile. Inputs of
            layers that the file quantizes are quantized by forward pre-hooks, bit for bit as when
            it was written; a file without such inputs removes them.
        max_decoded_bytes: refuse a file that decodes to more; None for a limit that fits what this
            package writes (64 MiB and 256 times the file). The time that it may take grows with it.
        threads: that decode side by side; 0 for as many as there are cores. Each takes up to 50
            MB of its own. The values are the same.
        transform_domain: with ``into``, whose layers are changed: a linear or convolution layer
            that the file holds in a basis becomes a pair of layers, nn.Sequential, which multiply
            by the basis and by what remains of the coefficients. Its outputs are the same but for
            rounding. Other layers stay as they are.

    Raises:
        CorruptFileError: the file is truncated, damaged, or not one of ours.
        ModelError: ``into`` has another architecture; it is left unchanged.
    """
    require(
        into is not None or not transform_domain, "transform_domain", "False without into=", True
    )
    opening = read_lazily(path, max_decoded_bytes=max_decoded_bytes, threads=threads)
    with opening as (tensors, aliases):
        if into is None:
            return state_dict(tensors, aliases)
        grids = tensors.activations()
        if isinstance(into, nn.Module):
            grids = fit_sites(grids, unwrapped(into), (*tensors, *aliases))
            check_inputs(unwrapped(into), grids)
        if grids and transform_domain:
            raise ConfigError(
                "the file quantizes inputs of layers, which transform_domain=True replaces. Load "
                "it without."
            )
        load_into(tensors, aliases, into, f"file {fspath(path)!r}")
        load_inputs(unwrapped(into), grids)
        if transform_domain:
            inner = unwrapped(into)
            names = fit_names(tensors, inner.state_dict())
            into_transform_domain(inner, tensors, names)
        return into


def load_tensor(
    path: str | PathLike[str],
    name: str,
    rows: tuple[int, int] | None = None,
    *,
    max_decoded_bytes: int | None = None,
) -> Tensor:
    """Read one tensor of a file, or some rows of it, by its name or another that is tied to it.

    Reads the index and what codes that tensor: of the steps and of small tensors, all.

    Args:
        path: a file that :meth:`CodedModel.save` wrote.
        name: of the tensor.
        rows: (first, stop) along its first dimension, as of an embedding; None for all. They are
            coded some 2 million weights at a time, and only what has some of them is read.
        max_decoded_bytes: as for :func:`load`.

    Raises:
        CorruptFileError: what was read is damaged; the rest of the file is not looked at.
        ConfigError: the file has no tensor ``name``, or not these rows; or the tensor is coded in
            another arrangement (a transform, a transposed convolution), or is small.
    """
    return to_torch(read_tensor(path, name, rows, max_decoded_bytes=max_decoded_bytes))


def _stored(source: str) -> str:
    if not source:
        return ""
    from .sources.base.spec import stored_source  # noqa: PLC0415  (not needed to load a file)

    return stored_source(source)


def _covering(coded: CodedModel) -> CodedModel:
    """Return the network, with a warning where most of it is left in float."""
    coded.doubt(stacklevel=4)
    return coded


def _check_untrained(plan: Plan) -> None:
    trained = [entry.trained for entry in plan.entries if entry.trained is not None]
    named = plan.recipe.train.method if plan.recipe.train is not None else None
    if trained or plan.recipe.train is not None:
        method = trained[0] if trained else named
        raise ConfigError(
            f"the method {method.name if method else 'of the recipe'!r} trains, and compress() "
            "does not. Use fewbits.training.from_recipe.train(...), fewbits.prepare "
            "in your own loop, or the command 'fewbits train'."
        )


def _check_no_goal(evaluate: object, seconds: object, trace: object) -> None:
    asked = {"evaluate": evaluate, "seconds": seconds, "trace": trace}
    for name, value in asked.items():
        if value is not None:
            raise ConfigError(
                f"{name}= belongs to a search, and none is asked for. Add target_bytes=, "
                "target_bits= or max_drop=."
            )


def _check_arguments(
    model: object,
    forward: Forward | None,
    source: object,
    max_live_bytes: object,
    progress: object,
) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module. Got {type(model).__name__} instead.")
    as_forward(forward)
    require(callable(progress), "progress", "a function of a ProgressEvent", progress)
    require(isinstance(source, str), "source", "a string such as 'module:callable'", source)
    bounded = isinstance(max_live_bytes, int) and max_live_bytes >= 0
    require(bounded, "max_live_bytes", "a number of bytes >= 0", max_live_bytes)
