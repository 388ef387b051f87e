"""What the file of a trained network holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..coded import ActivationGrid, Contents
from ..engine.bridge import pack_state
from ..engine.layer import Quantized
from ..engine.targets import Target, vector_targets
from ..planning import Plan

__all__ = ["packed"]


def packed(
    model: nn.Module,
    plan: Plan,
    targets: Mapping[str, Target],
    results: Mapping[str, Quantized],
    *,
    grids: Mapping[str, ActivationGrid],
    source: str,
) -> Contents:
    """Return codes for what was trained, everything else as the recipe's ``raw_dtype`` says.

    Args:
        model: a plain network again, holding the values of ``results``.
        plan: of the training.
        targets: of the weights in ``results``; its other vectors are found in the network.
        results: codes by state-dict name.
        grids: of quantized inputs, by module.
        source: how to build the network, told by the file; empty for not known.
    """
    vectors = {target.name: target for target in vector_targets(model, results)}
    tensors = pack_state(
        model.state_dict(),
        results=results,
        targets={**vectors, **targets},
        aliases=plan.aliases,
        raw_dtype=plan.recipe.raw_dtype,
        exact=plan.exact,
    )
    metadata: dict[str, Any] = {"recipe": plan.recipe.to_dict()}
    if source:
        metadata["source"] = source
    return Contents(tensors, dict(plan.aliases), dict(grids), metadata)
