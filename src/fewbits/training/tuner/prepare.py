"""Prepare a network for training with a method: what is trained, and where it starts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...coded import Cause, CodebookTensor, CodedTensor, Contents, GridTensor, Reason
from ...coding.trellis import follows
from ...compression.coded_model import load_into, unwrapped
from ...compression.start_levels import Start, contents_of
from ...engine.activations.hooks import remove_inputs
from ...engine.batchnorm.freeze import freeze_absorbed, freeze_zero_biases
from ...engine.batchnorm.merge import BatchNormMerge, mergeable
from ...engine.batchnorm.unfold import unfold_batchnorm
from ...engine.layers.layer import Quantized, QuantizedMatrix, QuantizedTransform
from ...engine.layers.pack import unpack
from ...engine.layers.targets import check_finite, vector_targets
from ...engine.network.batches import Forward
from ...engine.network.naming import fitted
from ...errors import ConfigError, ModelError, require, shorten
from ...methods import (
    InputSession,
    Session,
    TrainingMethod,
    TunedWeight,
    as_method,
    is_method,
    trains,
)
from ...recipe.plan import Plan, PlanEntry, make_plan
from ...recipe.recipe import RECIPES, Recipe, Rule
from .bias_steps import BiasSteps
from .parametrizations import bypasses, find_parameter
from .pruning import Pruning, keep_zeros
from .start import Change, Inherited, stored_dtype, warn_of_losses
from .trained_plan import as_trained, attach, with_coded_biases
from .tuner import Tuner

__all__ = ["prepare"]


@torch.inference_mode(False)
def prepare(
    model: nn.Module,
    method: TrainingMethod | Recipe | str,
    *,
    start: Start | None = None,
    keep: Sequence[str] = (),
    prune: Pruning | None = None,
    zeros: bool | None = None,
    vector_bits: int | None = None,
    norms: str = "absorbed",
    raw_dtype: str | None = None,
    seed: int = 0,
    source: str = "",
    calibration: Iterable[Any] | Tensor | None = None,
    forward: Forward | None = None,
) -> Tuner:
    """Prepare a network for compression by training in your own loop; it is modified in place.

    Args:
        model: the network, on the device where it is trained. Optimizers created before remain
            valid.
        method: a training method for all weights, such as ``fewbits.HEMP(levels=9)``, or its name;
            or a recipe whose rules name one.
        start: a compressed network, or its file, to start from; its values are loaded into
            ``model``. HEMP keeps the grid or codebook of each tensor, and the domain of a
            transform. Anything that is not kept (levels, quantized inputs, ...) causes a warning
            now and a note in the result.
        keep: patterns of weights to leave in float, as in a recipe.
        prune: ``fewbits.training.Magnitude(share=...)`` or ``Lobster(...)``.
        zeros: whether weights that are exactly zero stay zero. None means yes for a float network.
            Like ``prune``, not available for weights that start as coefficients of a transform.
        vector_bits: also train biases and other float vectors, each on a grid of this many bits,
            and quantize gains and biases of BatchNorm layers likewise when they are merged at the
            end. None stores them in ``raw_dtype``.
        norms: whether BatchNorm layers that ``start`` has absorbed stay "absorbed", or are "live":
            they get the statistics of ``calibration`` and normalize again during training.
        raw_dtype: storage of tensors that are not quantized: "keep", "float16" or "bfloat16". None
            means as in ``start``, otherwise "keep".
        seed: random seed.
        source: how to build the network again ("module:callable"), stored in the file; by default
            taken from ``start``.
        calibration: some batches of training data, for methods that quantize inputs of layers, and
            for live BatchNorm layers.
        forward: ``forward(model, batch)`` runs the network on these batches.

    Raises:
        ConfigError: an invalid setting (TargetError: a pattern that matches nothing).
        ModelError: NaN or infinite weights, weights that are not parameters, or an architecture
            other than that of ``start``.
        CalibrationError: ``calibration`` is missing, has bad values, or does not reach a layer.
    """
    _check_trainable(model)
    coded = None if start is None else contents_of(start)
    model, recipe = unwrapped(model), _recipe(method, keep, raw_dtype, seed, coded)
    plan = make_plan(model, recipe)
    trained = _trained(plan)
    _check_bits(vector_bits)
    require(norms in ("absorbed", "live"), "norms", "'absorbed' or 'live'", norms)
    coded = _loaded(coded, model, start)
    check_finite(model)
    changes = _remove_quantized_inputs(model, coded)
    absorbed = freeze_absorbed(model, coded=coded is not None)
    _check_reestimation(trained, absorbed, norms)
    live = absorbed if norms == "live" else []
    if live:
        unfold_batchnorm(model, live, calibration, forward)
    frozen = [name for name in absorbed if name not in live]
    norm_merge = _norm_merge(model, plan, trained, frozen, vector_bits)
    plan = _with_vectors(model, _with_merged(plan, norm_merge), trained, norm_merge)
    plan = _with_start(as_trained(model, plan, trained), model, trained, coded)
    plan = _with_zero_biases(model, plan, frozen if coded is not None else ())
    bias_steps = BiasSteps.of(model, coded, plan, {*norm_merge.names, *live})
    weights = [_weight(model, e, plan, coded, vector_bits) for e in plan.entries if e.trained]
    _keep_zeros(weights, prune, zeros, coded)
    session = trained.start(weights, recipe.seed)
    attach(session, model, plan, calibration, forward)
    inherited = _inherited(coded, trained, weights, absorbed)
    changes += inherited.expected_changes(model, _inputs(session), recipe.raw_dtype)
    warn_of_losses(changes, stacklevel=3)
    return Tuner(
        model,
        bias_steps.named(plan),
        session,
        weights,
        norm_merge=norm_merge,
        bias_steps=bias_steps,
        prune=prune,
        source=source or inherited.source,
        inherited=replace(inherited, expected=tuple(changes)),
    )


def _with_zero_biases(model: nn.Module, plan: Plan, absorbed: Sequence[str]) -> Plan:
    """Freeze the biases that ``absorbed`` normalizations have taken over, if any, and note it."""
    held = freeze_zero_biases(model, plan.kept.keys() - plan.exact) if absorbed else ()
    for name in held:
        plan = plan.kept_after(name, "stays zero: that of the BatchNorm took it over")
    return plan


def _inputs(session: Session) -> Collection[str]:
    """Return the sites that a session quantizes."""
    return session.inputs if isinstance(session, InputSession) else ()


def _norm_merge(
    model: nn.Module,
    plan: Plan,
    trained: TrainingMethod,
    frozen: Sequence[str],
    vector_bits: int | None,
) -> BatchNormMerge:
    exact = not trained.capabilities.merges_batchnorm
    names = () if exact else mergeable(model, plan.aliases, frozen)
    return BatchNormMerge(model, names, vector_bits)


def _with_start(
    plan: Plan, model: nn.Module, method: TrainingMethod, coded: Contents | None
) -> Plan:
    """Return the plan with the biases that are coded in the start, if the method keeps levels."""
    if coded is None or not method.capabilities.keeps_levels:
        return plan
    return with_coded_biases(model, plan, method, _coded_vectors(coded, model))


def _coded_vectors(coded: Contents, model: nn.Module) -> list[str]:
    """Return the vectors of the network that are coded in the start and can be trained."""
    parameters = model.named_parameters(remove_duplicate=False)
    live = [name for name, p in parameters if p.requires_grad and p.dim() == 1]
    return [
        name
        for name in live
        if isinstance(
            coded.tensors.get(coded.aliases.get(name, name)), (CodebookTensor, GridTensor)
        )
    ]


def _keep_zeros(
    weights: Sequence[TunedWeight],
    prune: Pruning | None,
    zeros: bool | None,
    start: Contents | None,
) -> None:
    if prune is not None or zeros:
        _check_maskable(weights)
    if zeros or (zeros is None and start is None):
        keep_zeros(weights)


def _check_trainable(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module. Got {type(model).__name__} instead.")
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise ModelError(
                f"parameter {name!r} was created in torch.inference_mode and cannot have "
                "gradients. Build or load the network outside of inference_mode."
            )


def _recipe(
    method: TrainingMethod | Recipe | str,
    keep: Sequence[str],
    raw_dtype: str | None,
    seed: int,
    start: Contents | None,
) -> Recipe:
    if isinstance(method, str):
        method = Recipe.of(method) if method in RECIPES else as_method(method)  # type: ignore[assignment]
    if isinstance(method, Recipe):
        if keep or raw_dtype not in (None, "keep") or seed:
            raise ConfigError(
                "keep=, raw_dtype= and seed= cannot be combined with a recipe. Set them in the "
                "recipe: keep by rules."
            )
        stored = stored_dtype(start) if method.raw_dtype == "keep" else ""
        return replace(method, raw_dtype=stored) if stored else method
    if not (is_method(method) and trains(method)):
        raise ConfigError(
            "method must be a training method such as fewbits.HEMP(levels=9), or a recipe "
            f"with one. Got {shorten(method)} instead."
        )
    rules = (Rule("*", method), *(Rule(pattern, None) for pattern in keep))
    if raw_dtype is None:
        raw_dtype = stored_dtype(start) or "keep"
    return Recipe(rules, seed=seed, raw_dtype=raw_dtype)


def _trained(plan: Plan) -> TrainingMethod:
    """Return the one training method of the plan."""
    methods = list(dict.fromkeys(e.trained for e in plan.entries if e.trained is not None))
    if len(methods) != 1:
        raise ConfigError(
            "all weights of a network must be trained by the same method. The recipe has "
            f"{len(methods)}: {methods}."
        )
    other = [entry.target.name for entry in plan.entries if entry.method is not None]
    if other:
        raise ConfigError(
            f"weight {other[0]!r} has a method that does not train. Compress with that method "
            "first and pass the result as start=; during training, weights are trained or kept."
        )
    return methods[0]


def _loaded(coded: Contents | None, model: nn.Module, start: Start | None) -> Contents | None:
    """Load the values of the start, if there is one, and return it with the network's names."""
    if coded is None:
        return None
    coded = fitted(coded, model)
    load_into(coded.tensors, coded.aliases, model, _description(start))
    return coded


def _inherited(
    start: Contents | None,
    method: TrainingMethod,
    weights: Sequence[TunedWeight],
    norms: Sequence[str],
) -> Inherited:
    keeps = method.capabilities.keeps_levels
    return Inherited(start, method.name, keeps, [weight.name for weight in weights], norms)


def _remove_quantized_inputs(model: nn.Module, coded: Contents | None) -> list[Change]:
    """Remove quantized inputs of a loaded file, whose rounding would block gradients."""
    count = remove_inputs(model)
    if not count or (coded is not None and coded.activations):
        return []  # those of the start are reported one by one
    text = (
        f"{count} inputs or outputs of layers were quantized by a file that was loaded, and its "
        "grids are dropped (fewbits.LowBit fits its own)"
    )
    return [Change("loaded", text)]


def _check_reestimation(method: TrainingMethod, frozen: Sequence[str], norms: str) -> None:
    """Refuse to re-estimate BatchNorm layers that are absorbed and have no statistics."""
    if method.remeasures_batchnorm and frozen and norms == "absorbed":
        raise ConfigError(
            f"reestimate=True needs BatchNorm statistics, but {len(frozen)} BatchNorm layers are "
            f"absorbed by the layers before them, first {frozen[0]!r}. Pass norms='live', which "
            "gives them statistics again, or leave out reestimate."
        )


def _description(start: Start | None) -> str:
    if isinstance(start, (str, PathLike)):
        return f"file {fspath(start)!r}"
    return "the compressed network"


def _weight(
    model: nn.Module, entry: PlanEntry, plan: Plan, coded: Contents | None, bits: int | None
) -> TunedWeight:
    target, end = entry.target, entry.target.name in plan.ends
    parameter = find_parameter(model, target)
    start, paths = None, False
    if coded is not None:
        stored = coded.tensors[coded.aliases.get(target.name, target.name)]
        start = unpack(stored, target)
        keeps = entry.trained is not None and entry.trained.capabilities.keeps_levels
        paths = keeps and _has_paths(stored, start)
    levels = 2**bits - 1 if bits and len(target.shape) == 1 else None
    return TunedWeight(
        target.name,
        parameter,
        target.view,
        start=start,
        levels=levels,
        end=end,
        paths=paths,
        bypasses=any(bypasses(model, name) for name in target.places),
    )


def _has_paths(stored: CodedTensor, start: Quantized | None) -> bool:
    """Return whether the columns of a grid are paths of a trellis, rows being rows of the weight.

    A file does not say so: its coder finds out, as here. Where all numbers are even, nothing is.
    """
    if not isinstance(stored, GridTensor) or not isinstance(start, QuantizedMatrix):
        return False
    same = np.array_equal(start.index.flatten(0, 1).numpy(), stored.index)
    plain = not stored.offset.any() and stored.blocks == 1
    return bool(same and plain and (stored.index & 1).any()) and follows(stored.index)


def _check_maskable(weights: Sequence[TunedWeight]) -> None:
    """Refuse to prune weights whose codes are coefficients of a transform, or paths."""
    for weight in weights:
        if weight.paths:
            raise ConfigError(
                f"weight {weight.name!r} starts as paths of a trellis, which zeros that must stay "
                "zero would break. Leave out prune= and zeros=True, or start from "
                "quantizer='scalar'."
            )
        if isinstance(weight.start, QuantizedTransform):
            raise ConfigError(
                f"weight {weight.name!r} starts as coefficients of a transform, so its zeros would "
                "not stay zero. Leave out prune= and zeros=True, or start from a network without a "
                "transform."
            )


def _check_bits(bits: object) -> None:
    whole = isinstance(bits, int) and not isinstance(bits, bool) and 2 <= bits <= 12
    require(bits is None or whole, "vector_bits", "None or an integer from 2 to 12", bits)


def _with_merged(plan: Plan, norm_merge: BatchNormMerge) -> Plan:
    """Return the plan with notes on the BatchNorm layers that are merged at the end."""
    grid = "" if norm_merge.bits is None else f", on a grid of {norm_merge.bits} bits"
    for name in norm_merge.names:
        notes = dict.fromkeys(("weight", "bias"), f"merged with its statistics at the end{grid}")
        notes |= dict.fromkeys(("running_mean", "running_var"), "constant when merged at the end")
        for leaf, what in notes.items():
            if f"{name}.{leaf}" in plan.kept:
                plan = plan.kept_after(f"{name}.{leaf}", what)
    return plan


def _with_vectors(
    model: nn.Module, plan: Plan, method: TrainingMethod, norm_merge: BatchNormMerge
) -> Plan:
    """Return the plan with float vectors trained too, except those of merged BatchNorm layers."""
    if norm_merge.bits is None:
        return plan
    reason = Reason(Cause.VECTOR_TRAINED, str(norm_merge.bits))
    alone = [name for name in plan.kept if name not in plan.exact]
    targets = [t for t in vector_targets(model, alone) if t.module not in norm_merge.names]
    entries = [PlanEntry(target, None, reason, method) for target in targets]
    named = {target.name for target in targets}
    kept = {name: reason for name, reason in plan.kept.items() if name not in named}
    return replace(plan, entries=(*plan.entries, *entries), kept=kept)
