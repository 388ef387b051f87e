"""The tuner applies a training method to a network, inside any training loop."""

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
from ...pretrained import files_of
from ...recipe.plan import Plan
from ...sources.base.spec import stored_source
from .bias_steps import BiasSteps
from .hidden_neurons import simplify_neurons
from .parametrizations import install, remove
from .pruning import Pruning, largest_threshold, prune_below, pruned_share
from .start import Inherited

__all__ = ["Tuner", "packed"]

_DIVERGED = (
    "Training diverged: lower the learning rate, use warm-up, or clip gradients (relative_clip)."
)


class Tuner:
    """Compresses a network during training; created by :func:`fewbits.prepare`.

    In the loop::

        for batch, target in loader:
            loss = task_loss(model(batch), target) + tuner.penalty()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            tuner.step()                      # after the optimizer, before zero_grad
            tuner.advance(done / total)       # share of the whole training
        coded = tuner.finish()

    Works on the network in place. Its parameters remain the same objects; its state dict keeps its
    names and holds the float weights. Gradients must be those that the optimizer used: with a
    gradient scaler, call ``step`` after the scaler's step.

    Attributes:
        model: the network.
        plan: what is trained, what is kept, and why; ``print`` lists it.
        weights: the weights in training, with their masks.
        session: the state of the method.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        session: Session,
        weights: Sequence[TunedWeight],
        *,
        norm_merge: BatchNormMerge,
        bias_steps: BiasSteps,
        prune: Pruning | None = None,
        source: str = "",
        inherited: Inherited | None = None,
    ) -> None:
        self.model = model
        self.plan = plan
        self.weights = tuple(weights)
        self.session = session
        self._norm_merge = norm_merge
        self._bias_steps = bias_steps
        self._prune = prune
        self._source = source
        self._inherited = inherited or Inherited()
        self._progress = 0.0
        self._done = False
        self._installed: dict[str, nn.Module] = {}
        self._install()

    @property
    def stage(self) -> int:
        """Number of the current stage, from 0; a new stage needs a fresh optimizer state."""
        return self.session.stage if isinstance(self.session, InputSession) else 0

    @property
    def stage_ends(self) -> tuple[float, ...]:
        """Shares of the training at which the stages of the method end; the last one is 1."""
        if not isinstance(self.session, InputSession):
            return (1.0,)
        return tuple(stage.until for stage in self.session.stages)

    @property
    def selectable_from(self) -> float:
        """Share of the training from which an epoch may be chosen as the result."""
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
        """Return the term to add to the loss: a scalar, zero if the method acts in :meth:`step`."""
        return self.session.penalty()

    def step(self) -> None:
        """Update the weights; call it after ``optimizer.step()`` and before ``zero_grad()``."""
        self._check_open()
        self.session.before_step()
        if self._prune is not None:
            self._prune.step(self.weights)
        self.session.step()
        self._hold_masks()

    def advance(self, progress: float) -> None:
        """Update schedules; ``progress`` is the finished share of the whole training."""
        self._check_open()
        require(0 <= progress <= 1, "progress", "a share of the training, in [0, 1]", progress)
        self._progress = float(progress)
        if self._prune is not None:
            self._prune.advance(self.weights, self._progress)
        self.session.advance(self._progress)

    def parameters(self) -> list[nn.Parameter]:
        """Return the parameters to train in addition to those of the network."""
        return list(self.session.parameters())

    def groups(self, lr: float, *, cells: float | None = None) -> list[dict[str, Any]]:
        """Return parameter groups for an optimizer, covering everything that is trained.

        Weight decay does not apply to the parameters of the method: their group sets it to zero.

        Args:
            lr: learning rate of biases, normalization layers, other parameters of the network, and
                of the method.
            cells: learning rate of the weights in training, in units of the distance between
                neighbouring levels. With Adam, this is roughly how far a weight can move per step,
                regardless of the scale of its layer. None for ``lr``.
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
        """Return metrics for a log: bits per weight, distance to the levels, zeros, pruned."""
        return {**self.session.measures(), "pruned": pruned_share(self.weights)}

    def prune(self, loss: Callable[[], float], tolerance: float = 0.05) -> float:
        """Prune as many of the smallest weights as ``tolerance`` allows.

        Args:
            loss: evaluates the network on *selection* data.
            tolerance: largest relative increase of the loss (TWT in LOBSTER).

        Returns:
            The share of weights that are now pruned.
        """
        self._check_open()
        threshold = largest_threshold(self.weights, loss, loss() * (1 + tolerance))
        prune_below(self.weights, threshold)
        return pruned_share(self.weights)

    @contextmanager
    def quantized(self) -> Iterator[nn.Module]:
        """Quantize the weights inside of the block, so the network computes like its file."""
        self._check_open()
        saved = [weight.parameter.detach().clone() for weight in self.weights]
        rounding = [m for m in self._installed.values() if isinstance(m, Switchable) and m.active]
        try:
            for weight in self.weights:
                weight.write(self.session.quantized(weight).dequantize())
            for module in rounding:
                module.active = False
            with self._norm_merge.rounded(), self._bias_steps.rounded():
                yield self.model
        finally:
            for module in rounding:
                module.active = True
            with torch.no_grad():
                for weight, values in zip(self.weights, saved, strict=True):
                    weight.parameter.copy_(values)

    # -- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs besides the states of network and optimizer."""
        masks = {weight.name: weight.mask for weight in self.weights}
        return {
            "session": self.session.state_dict(),
            "masks": {name: mask for name, mask in masks.items() if mask is not None},
            "progress": self._progress,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state returned by :meth:`state_dict`; load that of the network first."""
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
        """Finish training: the network gets its dequantized values and is a plain one again.

        BatchNorm statistics are merged into weight and bias, so the network can be evaluated, or
        trained further by ``fewbits.prepare(..., start=coded)``.

        Folding and sorting apply where the network is a plain sequence and can be traced; the
        notes of the result say what was done.

        Args:
            effort: coding effort.
            fold: remove hidden neurons that are constant or unused: their weights become zero, and
                a constant is added to the next bias. The network computes the same function.
            sort: sort hidden neurons by their number of nonzero weights, which saves some percent
                of small sparse networks. The network computes the same function, but neurons
                change places.
            metadata: whether to store recipe and source in the file.

        Raises:
            ModelError: the network has NaN or infinite values after training.
        """
        self._check_open()
        require(is_effort(effort), "effort", f"one of {', '.join(EFFORTS)}", effort)
        check_finite(self.model, advice=_DIVERGED)
        grids = self.session.detach(self.model) if isinstance(self.session, InputSession) else {}
        results = {weight.name: self.session.quantized(weight) for weight in self.weights}
        self._remove()
        unfreeze(self.model)
        for weight in self.weights:
            weight.write(results[weight.name].dequantize())
        results.update(self._norm_merge.settle())
        notes = self._norm_merge.notes()
        if not grids:  # quantization would change the constants, and grids may be per channel
            held = {*self.plan.aliases, *self.plan.aliases.values()}
            held |= {weight.name for weight in self.weights if weight.paths}
            notes += simplify_neurons(self.model, results, held, fold=fold, sort=sort)
        self._bias_steps.settle()  # after constants of neurons were added to biases
        notes += self._bias_steps.notes()
        contents = packed(
            self.model, self.plan, self._targets(), results, grids=grids, source=self._source
        )
        contents = self._inherited.unchanged(contents, self.model.state_dict())
        notes += self._inherited.report(contents, self.model)
        info = {name: dict(result.info) for name, result in results.items()}
        coded = CompressionResult(
            contents=contents,
            plan=self.plan,
            info=info,
            effort=effort,
            notes=tuple(notes),
            network_files=files_of(self.model),
        )
        coded.load_into(self.model)
        coded.warn_low_coverage(stacklevel=2)
        self._done = True
        return coded.with_skip_reason() if metadata else coded.without_metadata()

    # -- parts of the network

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
                "this tuner has finished, and its network is a plain one again. To train further, "
                "call fewbits.prepare again."
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
    """Pack the codes of trained weights, and everything else according to ``raw_dtype``.

    Args:
        model: the plain network with the values of ``results``.
        plan: the plan of the training.
        targets: targets of the weights in ``results``; vectors are found in the network.
        results: codes by state-dict name.
        grids: grids of quantized inputs, by module.
        source: how to build the network, stored in the file; empty if unknown.
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
