"""From a network and a method to a tuner: what is trained, and where it starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from os import PathLike, fspath
from typing import Any

from torch import Tensor, nn

from ..coded import Contents
from ..container import read
from ..engine.batches import Forward
from ..engine.bridge import unpack
from ..engine.targets import Target, check_finite, vector_targets
from ..errors import ConfigError, require
from ..methods import TrainedMethod, TunedWeight
from ..model import CodedModel, load_into, unwrapped
from ..planning import Plan, PlanEntry, make_plan
from ..recipe import Recipe, Rule
from .inputs import attach, without_kept
from .masks import Pruning, keep_zeros
from .norms import hold_absorbed
from .tuner import Tuner, find_parameter

__all__ = ["prepare"]


def prepare(
    model: nn.Module,
    method: TrainedMethod | Recipe,
    *,
    start: CodedModel | str | PathLike[str] | None = None,
    keep: Sequence[str] = (),
    prune: Pruning | None = None,
    zeros: bool | None = None,
    vector_bits: int | None = None,
    raw_dtype: str = "keep",
    seed: int = 0,
    source: str = "",
    calibration: Iterable[Any] | Tensor | None = None,
    forward: Forward | None = None,
) -> Tuner:
    """Begin a compression by training, in your own loop; the network itself is worked on.

    Args:
        model: the network, on the device where it is trained. An optimizer made before still fits.
        method: a training method, such as ``fewbits.HEMP(rate_weight=0.4)``, for all weights; or a
            recipe whose rules name one.
        start: a compressed network, or its file, that the training goes on from: its values are
            loaded into ``model``, and each tensor keeps its grid, codebook or basis.
        keep: patterns of weights that stay as they are, as in a recipe.
        prune: ``fewbits.training.Magnitude(share=...)`` or ``Lobster(...)``.
        zeros: whether weights that are exactly zero now stay zero; None: from a float network.
        vector_bits: trains biases and other float vectors too, each on a grid of so many bits;
            None leaves them as ``raw_dtype`` says.
        raw_dtype: how what is left alone is stored: "keep", "float16" or "bfloat16".
        seed: of every random choice.
        source: how to build the network again ("module:callable"), kept in the file.
        calibration: some batches of training data, for methods that quantize inputs of layers.
        forward: ``forward(model, batch)`` calls the network on them.

    Raises:
        ConfigError: a setting (TargetError: a pattern that matches nothing).
        ModelError: NaN or infinite weights, weights that are no parameters, another architecture
            than that of ``start``.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module. Got {type(model).__name__} instead.")
    model, recipe = unwrapped(model), _recipe(method, keep, raw_dtype, seed)
    plan = make_plan(model, recipe)
    trained = _trained(plan)
    plan = _with_vectors(model, plan, trained, vector_bits)
    coded = _contents(start)
    if coded is not None:
        load_into(coded.tensors, coded.aliases, model, _told(start))
        hold_absorbed(model)
    check_finite(model)
    plan = without_kept(plan, trained)
    weights = [_weight(model, e.target, coded, vector_bits) for e in plan.entries if e.trained]
    if zeros or (zeros is None and coded is None):
        keep_zeros(weights)
    course = trained.start(weights, recipe.seed)
    attach(course, model, plan, calibration, forward)
    return Tuner(model, plan, course, weights, prune=prune, source=source)


def _recipe(
    method: TrainedMethod | Recipe, keep: Sequence[str], raw_dtype: str, seed: int
) -> Recipe:
    if isinstance(method, Recipe):
        if keep or raw_dtype != "keep" or seed:
            raise ConfigError("a recipe has keep, raw_dtype and seed of its own. Set them there.")
        return method
    if isinstance(method, type) or not isinstance(method, TrainedMethod):
        raise ConfigError(
            "method must be a training method such as fewbits.HEMP(rate_weight=0.4), or a recipe "
            f"with one. Got {method!r} instead."
        )
    rules = (Rule("*", method), *(Rule(pattern, None) for pattern in keep))
    return Recipe(rules, seed=seed, raw_dtype=raw_dtype)


def _trained(plan: Plan) -> TrainedMethod:
    """Return the one training method of the plan."""
    methods = list(dict.fromkeys(e.trained for e in plan.entries if e.trained is not None))
    if len(methods) != 1:
        raise ConfigError(
            "a network is trained by one method for all of its weights, since what the method "
            f"learns is the network's. The recipe has {len(methods)}: {methods}."
        )
    other = [entry.target.name for entry in plan.entries if entry.method is not None]
    if other:
        raise ConfigError(
            f"weight {other[0]!r} has a method that does not train. Compress first, and give the "
            "result as start=; here a weight is trained or kept."
        )
    return methods[0]


def _contents(start: CodedModel | str | PathLike[str] | None) -> Contents | None:
    if start is None:
        return None
    if isinstance(start, CodedModel):
        return start.contents
    if isinstance(start, (str, PathLike)):
        return read(start)
    raise ConfigError(
        "start must be a CodedModel or the path of a .fewbits file. "
        f"Got {type(start).__name__} instead."
    )


def _told(start: CodedModel | str | PathLike[str] | None) -> str:
    if isinstance(start, (str, PathLike)):
        return f"file {fspath(start)!r}"
    return "the compressed network"


def _weight(
    model: nn.Module, target: Target, coded: Contents | None, bits: int | None
) -> TunedWeight:
    parameter = find_parameter(model, target)
    start = None
    if coded is not None:
        known = coded.aliases.get(target.name, target.name)
        start = unpack(coded.tensors[known], target)
    levels = 2**bits - 1 if bits and len(target.shape) == 1 else None
    return TunedWeight(target.name, parameter, target.view, start=start, levels=levels)


def _with_vectors(model: nn.Module, plan: Plan, method: TrainedMethod, bits: object) -> Plan:
    """Return the plan with the float vectors of ``model`` trained too."""
    if bits is None:
        return plan
    whole = isinstance(bits, int) and not isinstance(bits, bool) and 2 <= bits <= 12
    require(whole, "vector_bits", "None or an integer from 2 to 12", bits)
    targets = vector_targets(model, plan.kept)
    entries = [PlanEntry(t, None, f"a vector, on a grid of {bits} bits", method) for t in targets]
    named = {target.name for target in targets}
    kept = {name: reason for name, reason in plan.kept.items() if name not in named}
    return replace(plan, entries=(*plan.entries, *entries), kept=kept)
