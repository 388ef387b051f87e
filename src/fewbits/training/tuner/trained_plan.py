"""Methods that quantize inputs of layers too: what they keep, and how they meet the network."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ...engine.layers.targets import biases_beside, vector_targets
from ...engine.lockstep.layer_check import check_layers
from ...engine.network.batches import Forward, as_batches, as_forward, explained
from ...methods import InputSession, Session, TrainedMethod
from ...recipe.plan import Plan, PlanEntry

__all__ = ["as_clustered", "as_trained", "attach"]


def as_trained(model: nn.Module, plan: Plan, method: TrainedMethod) -> Plan:
    """Return the plan with what the method clusters besides, and without what it leaves alone."""
    return _without_kept(as_clustered(model, plan, method), method)


def _without_kept(plan: Plan, method: TrainedMethod) -> Plan:
    """Return the plan without the weights that the method itself leaves as they are."""
    kept = getattr(method, "kept", None)
    if kept is None:
        return plan
    names = [e.target.name for e in plan.entries if len(e.target.shape) > 1]
    reasons = kept(names)
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
    """Let a session that quantizes inputs find them in ``model``; nothing for others."""
    if not isinstance(session, InputSession):
        return
    targets = [e.target for e in plan.entries if e.trained is not None or "weights=32" in e.reason]
    batches = []
    if calibration is not None:
        batches = list(as_batches(calibration, model if forward is None else None))
    call = explained(as_forward(forward), "calibration of inputs")
    failed = check_layers(model, targets, batches, call).failed
    if failed:
        told = "; ".join(f"{name}: {why}" for name, why in failed.items())
        warnings.warn(f"inputs stay in float, of {told}", stacklevel=4)
    layers = {t.name: plan.modules_of(t.name) for t in targets if t.name not in failed}
    session.attach(model, layers, batches, call, plan.ends)


def as_clustered(model: nn.Module, plan: Plan, method: TrainedMethod) -> Plan:
    """Return the plan with the biases of trained layers, where ``method.biases`` says so.

    Embedding tables stay as they are then, unless ``method.embeddings``, or tied to another layer.
    """
    if not getattr(method, "biases", False):
        return plan
    if not getattr(method, "embeddings", True):
        plan = replace(plan, entries=tuple(_without_table(entry) for entry in plan.entries))
    trained = [entry.target for entry in plan.entries if entry.trained is not None]
    weights = [name for target in trained for name in (target.name, *target.also)]
    biases = [name for name in biases_beside(weights, plan.kept) if name not in plan.exact]
    targets = vector_targets(model, biases)
    entries = [PlanEntry(t, None, "a bias, with the weights", method) for t in targets]
    named = {target.name for target in targets}
    kept = {name: reason for name, reason in plan.kept.items() if name not in named}
    return replace(plan, entries=(*plan.entries, *entries), kept=kept)


def _without_table(entry: PlanEntry) -> PlanEntry:
    if entry.trained is None or entry.target.also or "Embedding" not in entry.target.kind:
        return entry
    return replace(entry, trained=None, reason="an embedding, kept: embeddings=True clusters it")
