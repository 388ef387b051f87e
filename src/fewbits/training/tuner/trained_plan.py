"""Adapt a plan to a training method, and attach sessions that quantize inputs of layers."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ...coded import Cause, Reason
from ...engine.layers.targets import biases_beside, vector_targets
from ...engine.lockstep.layer_check import check_layers
from ...engine.network.batches import Forward, as_batches, as_forward, explained
from ...methods import InputSession, Session, TrainingMethod
from ...recipe.plan import Plan, PlanEntry

__all__ = ["as_clustered", "as_trained", "attach", "with_coded_biases"]


def as_trained(model: nn.Module, plan: Plan, method: TrainingMethod) -> Plan:
    """Return the plan with the biases that the method trains, without what it leaves in float."""
    return _without_kept(as_clustered(model, plan, method), method)


def _without_kept(plan: Plan, method: TrainingMethod) -> Plan:
    """Return the plan without the weights that the method itself leaves in float."""
    reasons = method.kept([e.target.name for e in plan.entries if len(e.target.shape) > 1])
    if not reasons:
        return plan
    entries = tuple(
        replace(e, trained=None, reason=reasons[e.target.name])
        if e.trained and e.target.name in reasons
        else e
        for e in plan.entries
    )
    return replace(plan, entries=entries)


def attach(
    session: Session,
    model: nn.Module,
    plan: Plan,
    calibration: Iterable[Any] | Tensor | None,
    forward: Forward | None,
) -> None:
    """Let a session that quantizes inputs find them in ``model``; do nothing for others."""
    if not isinstance(session, InputSession):
        return
    targets = [e.target for e in plan.entries if e.trained is not None or _is_float(e)]
    batches = []
    if calibration is not None:
        batches = list(as_batches(calibration, model if forward is None else None))
    call = explained(as_forward(forward), "calibration of inputs")
    failed = check_layers(model, targets, batches, call).failed
    if failed:
        reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
        warnings.warn(f"inputs stay in float: {reasons}", stacklevel=4)
    layers = {t.name: plan.modules_of(t.name) for t in targets if t.name not in failed}
    session.attach(model, layers, batches, call, plan.ends)


def as_clustered(model: nn.Module, plan: Plan, method: TrainingMethod) -> Plan:
    """Return the plan with the biases of trained layers, if ``method.trains_biases``.

    Embedding tables are then kept, unless ``method.trains_embeddings`` or they are tied to another
    layer.
    """
    if not method.trains_biases:
        return plan
    if not method.trains_embeddings:
        plan = replace(plan, entries=tuple(_without_table(entry) for entry in plan.entries))
    return _with_biases(model, plan, method, plan.kept, Reason(Cause.BIAS_TRAINED))


def with_coded_biases(
    model: nn.Module, plan: Plan, method: TrainingMethod, coded: Collection[str]
) -> Plan:
    """Return the plan with those biases of trained layers that are ``coded`` in the start."""
    named = [name for name in plan.kept if name in coded]
    return _with_biases(model, plan, method, named, Reason(Cause.BIAS_OF_START))


def _with_biases(
    model: nn.Module, plan: Plan, method: TrainingMethod, names: Iterable[str], reason: Reason
) -> Plan:
    trained = [entry.target for entry in plan.entries if entry.trained is not None]
    weights = [name for target in trained for name in (target.name, *target.also)]
    biases = [name for name in biases_beside(weights, names) if name not in plan.exact]
    targets = vector_targets(model, biases)
    entries = [PlanEntry(t, None, reason, method) for t in targets]
    named = {target.name for target in targets}
    kept = {name: reason for name, reason in plan.kept.items() if name not in named}
    return replace(plan, entries=(*plan.entries, *entries), kept=kept)


def _is_float(entry: PlanEntry) -> bool:
    """Return whether the method leaves a weight in float, though it may quantize the input."""
    return isinstance(entry.reason, Reason) and entry.reason.cause is Cause.FLOAT_WEIGHTS


def _without_table(entry: PlanEntry) -> PlanEntry:
    if entry.trained is None or entry.target.also or "Embedding" not in entry.target.kind:
        return entry
    return replace(entry, trained=None, reason=Reason(Cause.EMBEDDING))
