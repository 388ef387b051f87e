"""The tuner: a training method at work on somebody's network, in somebody's loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...coded import ActivationGrid, Contents, html_table
from ...coding import EFFORTS, is_effort
from ...compression.result import CompressionResult
from ...engine.batchnorm.freeze import unfreeze
from ...engine.batchnorm.merge import BatchNormMerge
from ...engine.layers.layer import Quantized
from ...engine.layers.pack import pack_state
from ...engine.layers.targets import Target, check_finite, vector_targets
from ...errors import ConfigError, require
from ...methods import InputSession, Session, Switchable, TunedWeight
from ...recipe.plan import Plan
from ...sources.base.spec import stored_source
from .hidden_neurons import tidy
from .parametrizations import install, remove
from .pruning import Pruning, largest_threshold, prune_below, pruned_share
from .start import Inherited

__all__ = ["Tuner", "packed"]


class Tuner:
    """Compresses a network while it is trained. :func:`fewbits.prepare` makes it.

    In the loop::

        for batch, target in loader:
            loss = task_loss(model(batch), target) + tuner.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            tuner.step()                      # after the optimizer, before zero_grad
            tuner.advance(done / total)       # of the whole training
        coded = tuner.finish()

    Works on the network in place. Its parameters stay the objects that they were, its state dict
    keeps its names, and holds the float weights. The gradients must be those that the optimizer
    used: with a gradient scaler call ``step`` after the scaler's.

    Attributes:
        model: the network.
        plan: what is trained, what stays as it is, and why; printable.
        weights: the weights in training, with their masks.
        session: the method's own state.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        session: Session,
        weights: Sequence[TunedWeight],
        *,
        norm_merge: BatchNormMerge,
        prune: Pruning | None = None,
        source: str = "",
        inherited: Inherited | None = None,
    ) -> None:
        self.model = model
        self.plan = plan
        self.weights = tuple(weights)
        self.session = session
        self._norm_merge = norm_merge
        self._prune = prune
        self._source = source
        self._inherited = inherited or Inherited()
        self._progress = 0.0
        self._done = False
        self._installed: dict[str, nn.Module] = {}
        self._install()

    @property
    def stage(self) -> int:
        """Number of the method's present stage, from 0; a new one wants a fresh optimizer state."""
        return self.session.stage if isinstance(self.session, InputSession) else 0

    @property
    def stage_ends(self) -> tuple[float, ...]:
        """Shares of the training at which the method's stages end, the last of them 1."""
        if not isinstance(self.session, InputSession):
            return (1.0,)
        return tuple(stage.until for stage in self.session.stages)

    @property
    def selectable_from(self) -> float:
        """Share of the training from which an epoch can be chosen as its result."""
        return self.session.selectable_from if isinstance(self.session, InputSession) else 0.0

    def __repr__(self) -> str:
        name, count = type(self.session).__name__, len(self.weights)
        state = "finished" if self._done else f"{self._progress:.0%} done"
        return f"<Tuner of {count} weights by {name}, {state}: {self.plan.coverage}>"

    def _repr_html_(self) -> str:
        rows = [(weight.name, "x".join(map(str, weight.shape))) for weight in self.weights]
        return html_table(("weight in training", "shape"), rows, title=repr(self))

    # -- in the loop

    def penalty(self) -> Tensor:
        """Return what to add to the task's loss: a scalar; zero where the method acts in step."""
        return self.session.penalty()

    def step(self) -> None:
        """Let the method act. Call it after ``optimizer.step()`` and before ``zero_grad()``."""
        self._check_open()
        self.session.before_step()
        if self._prune is not None:
            self._prune.step(self.weights)
        self.session.step()
        self._hold_masks()

    def advance(self, progress: float) -> None:
        """Follow the schedules; ``progress`` is the share of the whole training that is done."""
        self._check_open()
        require(0 <= progress <= 1, "progress", "a share of the training, in [0, 1]", progress)
        self._progress = float(progress)
        if self._prune is not None:
            self._prune.advance(self.weights, self._progress)
        self.session.advance(self._progress)

    def parameters(self) -> list[nn.Parameter]:
        """Return what the optimizer must train besides the network's own parameters."""
        return list(self.session.parameters())

    def groups(self, lr: float, *, cells: float | None = None) -> list[dict[str, Any]]:
        """Return parameter groups for an optimizer, with everything that is trained.

        An optimizer's weight decay leaves the method's own alone: their group sets it to zero.

        Args:
            lr: learning rate of biases, norms and other parameters, and of the method's own.
            cells: of the weights in training, in distances of neighbouring levels: with Adam about
                how many a weight may move in a step, whatever the size of its layer's weights.
                None for ``lr``.
        """
        own = self.parameters()
        known = {id(p) for p in (*own, *(weight.parameter for weight in self.weights))}
        rest = [p for p in self.model.parameters() if id(p) not in known]
        groups: list[dict[str, Any]] = [
            {"params": rest, "lr": lr},
            {"params": own, "lr": lr, "weight_decay": 0.0},
        ]
        for weight in self.weights:
            learning_rate = lr if cells is None else cells * self.session.cell(weight)
            groups.append({"params": [weight.parameter], "lr": learning_rate})
        return [group for group in groups if group["params"]]

    def measures(self) -> dict[str, float]:
        """Return figures for a log: bits per weight, distance to the levels, zeros, pruned."""
        return {**self.session.measures(), "pruned": pruned_share(self.weights)}

    def prune(self, loss: Callable[[], float], tolerance: float = 0.05) -> float:
        """Prune as many of the smallest weights as cost at most ``tolerance`` of the loss.

        Args:
            loss: evaluates the network, on *selection* data.
            tolerance: by which share the loss may rise (LOBSTER's TWT).

        Returns:
            The share of weights that are pruned now.
        """
        self._check_open()
        threshold = largest_threshold(self.weights, loss, loss() * (1 + tolerance))
        prune_below(self.weights, threshold)
        return pruned_share(self.weights)

    @contextmanager
    def quantized(self) -> Iterator[nn.Module]:
        """Hold what the file would hold: inside, the network computes with the coded values."""
        self._check_open()
        saved = [weight.parameter.detach().clone() for weight in self.weights]
        rounding = [m for m in self._installed.values() if isinstance(m, Switchable) and m.active]
        try:
            for weight in self.weights:
                weight.write(self.session.quantized(weight).dequantize())
            for module in rounding:
                module.active = False
            with self._norm_merge.rounded():
                yield self.model
        finally:
            for module in rounding:
                module.active = True
            with torch.no_grad():
                for weight, values in zip(self.weights, saved, strict=True):
                    weight.parameter.copy_(values)

    # -- stopping and going on

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs besides the states of network and optimizer."""
        masks = {weight.name: weight.mask for weight in self.weights}
        return {
            "session": self.session.state_dict(),
            "masks": {name: mask for name, mask in masks.items() if mask is not None},
            "progress": self._progress,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; load the network's state first."""
        for weight in self.weights:
            mask = state["masks"].get(weight.name)
            weight.mask = None if mask is None else mask.to(weight.parameter.device)
        self._progress = float(state["progress"])
        self.session.load_state_dict(state["session"])

    # -- the end

    def finish(
        self,
        effort: str = "balanced",
        *,
        fold: bool = True,
        sort: bool = False,
        metadata: bool = True,
    ) -> CompressionResult:
        """End the training: the network holds the coded values, and is a plain one again.

        Batch normalizations have taken their statistics into weight and bias: the network is one to
        evaluate, or to go on with by ``fewbits.prepare(..., start=coded)``.

        Args:
            effort: of the encoding.
            fold: remove hidden neurons that give a constant, or that nobody reads: their weights
                become zero, and the constant goes to the next bias. The function stays.
            sort: bring hidden neurons into the order of their nonzero weights, which saves some
                percent of small sparse networks. The function stays, the neurons change places.
            metadata: whether the file tells recipe and source.

        Folding and sorting act where the network is a plain sequence and can be traced; notes tell.

        Raises:
            ModelError: the training left NaN or infinite values.
        """
        self._check_open()
        require(is_effort(effort), "effort", f"one of {', '.join(EFFORTS)}", effort)
        check_finite(self.model)
        grids = self.session.detach(self.model) if isinstance(self.session, InputSession) else {}
        results = {weight.name: self.session.quantized(weight) for weight in self.weights}
        self._remove()
        unfreeze(self.model)
        for weight in self.weights:
            weight.write(results[weight.name].dequantize())
        results.update(self._norm_merge.settle())
        notes = self._norm_merge.notes()
        if not grids:  # quantized, a constant is another, and grids may go by channel
            notes += tidy(self.model, results, self.plan.aliases, fold=fold, sort=sort)
        contents = packed(
            self.model, self.plan, self._targets(), results, grids=grids, source=self._source
        )
        contents = self._inherited.unchanged(contents, self.model.state_dict())
        notes += self._inherited.told(contents, self.model)
        info = {name: dict(result.info) for name, result in results.items()}
        coded = CompressionResult(
            contents=contents, plan=self.plan, info=info, effort=effort, notes=tuple(notes)
        )
        coded.load_into(self.model)
        coded.warn_low_coverage(stacklevel=2)
        self._done = True
        return coded.with_skip_reason() if metadata else coded.without_metadata()

    # -- the network's parts

    def _targets(self) -> dict[str, Target]:
        return {entry.target.name: entry.target for entry in self.plan.entries}

    def _install(self) -> None:
        targets = self._targets()
        for weight in self.weights:
            module = self.session.parametrization(weight)
            if module is None:
                continue
            target = targets[weight.name]
            for name in target.places:
                install(self.model, name, module)
                self._installed[name] = module

    def _remove(self) -> None:
        for name in self._installed:
            remove(self.model, name)
        self._installed.clear()

    def _hold_masks(self) -> None:
        with torch.no_grad():
            for weight in self.weights:
                if weight.mask is not None:
                    weight.parameter.mul_(weight.mask)

    def _check_open(self) -> None:
        if self._done:
            raise ConfigError(
                "this tuner has finished: its network is a plain one again. Call fewbits.prepare "
                "for another training."
            )


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
        metadata["source"] = stored_source(source)
    return Contents(tensors, dict(plan.aliases), dict(grids), metadata)
