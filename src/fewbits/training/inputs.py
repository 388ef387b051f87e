"""Methods that quantize inputs of layers too: what they keep, and how they meet the network."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..engine.batches import Forward, as_batches, as_forward, explained
from ..engine.layer_check import check_layers
from ..methods import Course, InputCourse, TrainedMethod
from ..planning import Plan

__all__ = ["attach", "without_kept"]


def without_kept(plan: Plan, method: TrainedMethod) -> Plan:
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
    course: Course,
    model: nn.Module,
    plan: Plan,
    calibration: Iterable[Any] | Tensor | None,
    forward: Forward | None,
) -> None:
    """Let a course that quantizes inputs find them in ``model``; nothing for others."""
    if not isinstance(course, InputCourse):
        return
    targets = [e.target for e in plan.entries if e.trained is not None or "weights=32" in e.reason]
    batches = []
    if calibration is not None:
        batches = list(as_batches(calibration, model if forward is None else None))
    call = explained(as_forward(forward), "calibration of inputs")
    failed = check_layers(model, targets, batches, call).failed
    if failed:
        told = "; ".join(f"{name}: {why}" for name, why in failed.items())
        warnings.warn(f"inputs stay in float, of {told}", stacklevel=3)
    layers = {t.name: plan.modules_of(t.name) for t in targets if t.name not in failed}
    course.attach(model, layers, batches, call, plan.ends)
