"""What else than weights a method clusters: biases with their layers, embeddings where asked."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ..engine.targets import biases_beside, vector_targets
from ..methods import TrainedMethod
from ..planning import Plan, PlanEntry

__all__ = ["as_clustered"]


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
