"""Sensitivity of a network's output to errors in each weight: second moments of gradients.

Let y be the output and v a random probe with E[v v'] = M, the metric. The gradient g of v'y with
respect to a weight has E[g g'] = J'MJ, so one backward pass replaces as many as y has elements.
(Young et al. 2021 need these moments for their transform; CVXQ, arXiv 2409.02026, needs squares.)
An error of one layer that is uncorrelated with those of others changes the output by the sum over
its rows o of ``dw_o E[g_o g_o'] dw_o'``. Gradients are kept per sample: those of a whole batch have
the same expectation, but each sample is one more draw.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CalibrationError
from ..progress import Progress, ProgressEvent, silent
from .layers.layer import Sensitivity
from .layers.lookups import LookupSums, joined
from .layers.rows import Rows
from .layers.statistics import second_moments
from .layers.targets import Target
from .layers.views import WeightView
from .network.batches import Call, Forward, describe
from .network.distributed import ALONE, Ranks
from .network.isolation import autocast_off, fast_path_off, isolated_pass
from .network.padding import keep_real

__all__ = ["METRICS", "Probed", "probe"]

METRICS = ("auto", "logits", "fisher")
_NAMES = ("logits", "last_hidden_state")
_CHUNK = 1 << 24  # gradients held at once: bounds the scratch memory of large layers
_PIECE = 1 << 20  # inputs gathered at once: few enough to stay in the processor's cache
_PER_COLUMN, _LEAST = 16, 16384  # gradient rows that moments need, as of inputs
_MOST_OUTPUTS = 4096  # neurons of a layer whose joint moments are kept
_FLOOR = 1e-3  # relative to the mean over a layer's rows: lower bound on a row's sensitivity


@dataclass(frozen=True)
class Probed:
    """What gradients tell of a network.

    Attributes:
        layers: sensitivity of every weight with a nonzero gradient, by name.
        energy: size of the output in the unit of distortions: the mean over samples (over tokens,
            of sequences) of the squared centred output; with the metric "fisher", 1 nat.
    """

    layers: Mapping[str, Sensitivity]
    energy: float


class _Sums:
    """Moments of one weight, accumulated over samples; the last column is the bias.

    A sample has as many gradient rows as neurons, and as many columns of them. Where that is more
    than the moments of the other side need, evenly spaced ones are used, others in every call.

    Args:
        passes: number of backward passes, over which the rows to use are spread.
    """

    def __init__(self, passes: int) -> None:
        self.drawn = 0  # number of per-sample gradients
        self.positions = 0
        self.energy: Tensor | float = 0.0  # (groups,) trace of X'X
        self.rows: Tensor | float = 0.0
        self.columns: Tensor | float = 0.0
        self.biases: Tensor | float = 0.0
        self.outputs: Tensor | float | None = 0.0
        self._passes, self._calls = passes, 0
        self._shares: Tensor | None = (
            None  # weights of rows in `columns`, set by the first gradients
        )

    def add(self, gradients: Tensor, energy: Tensor, positions: int, samples: int) -> None:
        """Add gradients (groups, samples, neurons, columns + 1), of ``samples`` in this pass.

        ``energy`` (groups,) is the sum of squares of the inputs at ``positions`` positions.
        """
        squares = _squares(gradients[..., :-1], 3).sum(1)
        shares = self._shares
        if shares is None:
            mean = squares.mean(1, keepdim=True)
            shares = (mean / squares.clamp_min(_FLOOR * mean + _tiny())).float()
            if bool((mean > 0).all()):  # the first samples may have no gradient at all
                self._shares = shares
        self.rows = self.rows + squares
        self.biases = self.biases + _squares(gradients[..., -1], 1)
        self._add_columns(gradients, shares, samples * self._passes)
        self._add_outputs(gradients[..., :-1], samples * self._passes)
        self.energy = self.energy + energy
        self.drawn += gradients.shape[1]
        self.positions += positions
        self._calls += 1

    def _add_columns(self, gradients: Tensor, shares: Tensor, samples: int) -> None:
        _, count, neurons, columns = gradients.shape
        step = _stride(samples * neurons, columns, neurons)
        picks = torch.arange(self._calls % step, count * neurons, step)
        rows = gradients.flatten(1, 2)[:, self._calls % step :: step]
        weighted = rows * shares.sqrt()[:, picks % neurons, None]
        self.columns = self.columns + step * second_moments(weighted)

    def _add_outputs(self, plain: Tensor, samples: int) -> None:
        groups, count, neurons, columns = plain.shape
        if self.outputs is None or neurons > _MOST_OUTPUTS:
            self.outputs = None
            return
        step = _stride(samples * columns, neurons, columns)
        if step == 1:
            rows = plain.transpose(2, 3).flatten(1, 2)
        else:
            picks = torch.arange(self._calls % step, count * columns, step)
            rows = plain[:, picks // columns, :, picks % columns]  # (picks, groups, neurons)
            rows = rows.reshape(len(picks), groups, neurons).transpose(0, 1)
        self.outputs = self.outputs + step * second_moments(rows)

    @property
    def begun(self) -> tuple[int, Tensor | None]:
        """What decides which rows are used: the number of calls so far, and the weights of rows."""
        return self._calls, self._shares

    def begin(self, begun: tuple[int, Tensor | None], batch: int) -> None:
        """Go on from ``batch`` as if those before it had been as the first, which had begun so."""
        calls, shares = begun
        self._calls = batch * calls
        self._shares = self._shares if shares is None else shares

    def state(self) -> dict[str, Tensor]:
        """Return the sums, which add up over ranks."""
        numbers = torch.tensor([self.drawn, self.positions])
        sums = {"energy": self.energy, "rows": self.rows, "columns": self.columns}
        sums["biases"] = self.biases
        if self.outputs is not None:
            sums["outputs"] = self.outputs
        return {"numbers": numbers, **{name: torch.as_tensor(x) for name, x in sums.items()}}

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Use the sums of all ranks."""
        self.drawn, self.positions = (int(number) for number in state["numbers"])
        self.energy, self.rows, self.columns = (state[k] for k in ("energy", "rows", "columns"))
        self.biases, self.outputs = state["biases"], state.get("outputs")

    @property
    def reached(self) -> bool:
        """Whether any nonzero gradient was added."""
        return self.drawn > 0 and bool(torch.as_tensor(self.rows).sum() > 0)

    def finish(self, probes: int) -> Sensitivity:
        """Return the moments."""
        rows, joint = (
            torch.as_tensor(total).double() / self.drawn for total in (self.rows, self.columns)
        )
        outputs = None
        if self.outputs is not None:
            outputs = (torch.as_tensor(self.outputs).double() / self.drawn).float()
        energy = (torch.as_tensor(self.energy) / self.positions).clamp_min(_tiny())
        trace = joint[:, :-1, :-1].diagonal(dim1=1, dim2=2).sum(1)
        joint = joint * torch.where(trace > 0, energy / trace, 0.0)[:, None, None]
        cross, bias = joint[:, :-1, -1:], joint[:, -1:, -1:].clamp_min(_tiny())
        return Sensitivity(
            rows=rows / energy[:, None],
            columns=joint[:, :-1, :-1].float(),
            outputs=outputs,
            samples=self.drawn // probes,
            mean=(cross / bias.sqrt())[..., 0].float(),
            biases=torch.as_tensor(self.biases).double() / self.drawn,
        )


def _stride(rows: int, columns: int, cycle: int) -> int:
    """Return the distance between the rows to use of ``rows``, for moments of ``columns``.

    It has no factor in common with ``cycle``, so that every place in it is used equally often.
    """
    step = max(1, rows // max(_PER_COLUMN * columns, _LEAST))
    while gcd(step, cycle) > 1:
        step += 1
    return step


def _squares(values: Tensor, axes: int | tuple[int, ...]) -> Tensor:
    """Return sums of squares over ``axes``, float64; far cheaper than summing in float64."""
    norms: Tensor = torch.linalg.vector_norm(values, dim=axes)
    return norms.double().square()


def _tiny() -> float:
    return torch.finfo(torch.float64).tiny


@dataclass
class _Tap:
    """Hooks on one module: its inputs in a pass, and the gradients of its output."""

    uses: Sequence[tuple[Target, WeightView]]
    sums: Mapping[str, _Sums]
    tables: dict[str, LookupSums]
    samples: list[int]
    anchor: Tensor = field(default_factory=lambda: torch.zeros((), requires_grad=True))
    used: bool = False

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Attach the output to a tensor that requires gradients, and hook its own gradient."""
        if not (isinstance(output, Tensor) and output.is_floating_point()):
            return output
        call = Call(args, kwargs)
        self.used = True
        attached = output + self.anchor.to(output)
        if not attached.requires_grad:
            return output
        attached.register_hook(lambda gradient: self.take(call, gradient))  # type: ignore[no-untyped-call]
        return attached

    @torch.no_grad()
    @autocast_off()
    def take(self, call: Call, gradient: Tensor) -> None:
        """Add the per-sample gradients of every weight: output gradients times input rows."""
        for target, view in self.uses:
            if view.lookup is not None:
                self._look_up(target, view.lookup(call), gradient)
            if view.inputs is None or view.outputs is None:
                continue
            rows, gradients = view.inputs(call), view.outputs(gradient)
            samples = len(gradient) if rows.count % max(1, len(gradient)) == 0 else 1
            if rows.count and len(gradients) == rows.count:
                self._add(target, view, rows, gradients, samples)

    def _look_up(self, target: Target, places: Tensor, gradient: Tensor) -> None:
        """Add the gradients of vectors that were looked up."""
        rows, columns = target.view.rows, target.view.columns(target.shape)
        if gradient.shape == (*places.shape, columns):
            table = self.tables.setdefault(target.name, LookupSums(rows, columns))
            table.add(places, gradient, self.samples[0])

    def _add(
        self, target: Target, view: WeightView, rows: Rows, gradients: Tensor, samples: int
    ) -> None:
        """Add the gradients (rows, neurons of all groups) of a call with this many samples."""
        sums = self.sums[target.name]
        places, columns = rows.count // samples, view.columns(target.shape)
        neurons = view.rows // view.groups
        width = max(1, _CHUNK // (view.rows * columns))
        piece = max(1, _PIECE // (view.groups * places * columns))
        for start in range(0, samples, width):
            stop = min(start + width, samples)
            joint = torch.empty(stop - start, view.groups, neurons, columns + 1)
            energy = torch.zeros(view.groups, dtype=torch.float64)
            for first in range(start, stop, piece):
                last = min(first + piece, stop)
                x = rows.by_sample(samples, first, last).float()
                g = gradients[first * places : last * places].float()
                g = g.reshape(last - first, places, view.groups, neurons).permute(0, 2, 3, 1)
                part = joint[first - start : last - start]
                part[..., :-1], part[..., -1] = (g @ x.mT).cpu(), g.sum(3).cpu()
                energy += _squares(x, (2, 3)).sum(0).cpu()
            sums.add(joint.transpose(0, 1), energy, (stop - start) * places, samples)


def probe(
    network: nn.Module,
    targets: Iterable[Target],
    batches: Sequence[Any],
    forward: Forward,
    *,
    masks: Sequence[Sequence[Tensor]] = (),
    metric: str = "auto",
    probes: int = 1,
    seed: int = 0,
    progress: Progress = silent,
    ranks: Ranks = ALONE,
) -> Probed:
    """Measure how errors of each weight change the output.

    Args:
        network: in evaluation mode; unchanged afterwards.
        targets: weights; those whose inputs or outputs cannot be seen are left out.
        batches: calibration batches, without labels.
        forward: calls the network on a batch and returns its output (logits, samples first). Of
            sequences (samples, tokens, classes), sensitivity is that of one token, on average.
        masks: of each batch, bool (samples, tokens) that are False for padding, whose outputs do
            not count.
        metric: "logits" (squared error of the output, up to a common shift), "fisher" (the
            Kullback-Leibler divergence of the class probabilities, for small errors), or "auto":
            "fisher" for logits of every token (samples, tokens, classes), which a network returns
            under that name, else "logits".
        probes: backward passes per batch.
        seed: seed of the probes.
        progress: called after each batch.
        ranks: who else runs passes, each over its share of the batches, once the first rank has
            run the first: it decides which gradient rows count for how much.

    Raises:
        CalibrationError: ``forward`` returns nothing that has gradients.

    Cost: per batch one forward pass, and per probe one backward pass plus the per-sample gradients
    of the weights, which take as much again: ``2 n N`` flops per position.
    """
    run = _Probe(network, batches, forward, masks, metric, probes, seed)
    own = ranks.own(len(batches))
    progress(ProgressEvent("probe", 0, len(own)))
    with run.hooked(targets), torch.enable_grad(), fast_path_off():
        for place in own[: int(ranks.first)]:
            run.visit(place)
        begun = ranks.exchange("first gradients", run.begun)[0]
        for done, place in enumerate(own, 1):
            if ranks.count > 1:
                run.begin(begun, place)
            if place:
                run.visit(place)
            progress(ProgressEvent("probe", done, len(own)))
    return run.finish(ranks)


@dataclass
class _Probe:
    """The passes of one rank, and what they have found."""

    network: nn.Module
    batches: Sequence[Any]
    forward: Forward
    masks: Sequence[Sequence[Tensor]]
    metric: str
    probes: int
    seed: int
    samples: list[int] = field(default_factory=lambda: [1])
    energies: dict[int, float] = field(default_factory=dict)
    tables: dict[str, LookupSums] = field(default_factory=dict)
    taps: dict[str, _Tap] = field(default_factory=dict)
    sums: defaultdict[str, _Sums] = field(init=False)

    def __post_init__(self) -> None:
        passes = len(self.batches) * self.probes
        self.sums = defaultdict(lambda: _Sums(passes))

    @contextmanager
    def hooked(self, targets: Iterable[Target]) -> Iterator[None]:
        """Hook the layers of the targets during the block."""
        by_module: defaultdict[str, list[tuple[Target, WeightView]]] = defaultdict(list)
        for target in targets:
            for module, view in target.uses or ((target.module, target.view),):
                by_module[module].append((target, view))
        self.taps = {
            name: _Tap(own, self.sums, self.tables, self.samples) for name, own in by_module.items()
        }
        modules = dict(self.network.named_modules())
        handles = [
            modules[name].register_forward_hook(tap, with_kwargs=True)
            for name, tap in self.taps.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def visit(self, place: int) -> None:
        """Run a batch, and backpropagate its probes."""
        answer = isolated_pass(self.forward, self.network, self.batches[place], place)
        anchors = [tap.anchor for tap in self.taps.values() if tap.used]
        if not anchors:
            return
        number = (self.seed * 7919 + place) * 64
        own = self.masks[place] if self.masks else ()
        logits = keep_real(_logits(answer), own)
        chosen = _metric_of(answer, logits) if self.metric == "auto" else self.metric
        self.samples[0] = len(logits) if logits.dim() else 1
        share = _tokens(logits, own) ** -0.5
        self.energies[place] = _energy(logits.detach(), chosen, share)
        _propagate(logits, anchors, chosen, share, range(number, number + self.probes))

    @property
    def begun(self) -> dict[str, tuple[int, Tensor | None]]:
        """What the first batch decides, by weight."""
        return {name: total.begun for name, total in self.sums.items()}

    def begin(self, begun: Mapping[str, tuple[int, Tensor | None]], place: int) -> None:
        """Go on at a batch, where the one before it was run by another rank."""
        for name, known in begun.items():
            self.sums[name].begin(known, place)

    def finish(self, ranks: Ranks) -> Probed:
        """Return what all ranks have found."""
        known = ranks.exchange("gradients", (list(self.sums), list(self.tables), self.energies))
        for name in dict.fromkeys(name for names, _, _ in known for name in names):
            own = self.sums[name]
            if ranks.count > 1:
                own.take(ranks.total(f"gradients of {name}", own.state() if own.drawn else {}))
        found = {n: total.finish(self.probes) for n, total in self.sums.items() if total.reached}
        for name in dict.fromkeys(name for _, names, _ in known for name in names):
            table = self.tables.get(name)
            state = ranks.total(f"lookups of {name}", {} if table is None else table.state())
            table = LookupSums.of_state(state)
            if table.reached:
                looked_up = table.finish(self.probes)
                found[name] = joined(found[name], looked_up) if name in found else looked_up
        energies = {place: value for *_, part in known for place, value in part.items()}
        total = sum(energies[place] for place in sorted(energies))
        return Probed(found, total / max(1, len(energies)))


def _energy(output: Tensor, metric: str, share: float) -> float:
    """Return the energy of outputs, per sample or, where ``share`` says so, per token."""
    if metric == "fisher":
        return 1.0
    centred = output - output.mean(-1, keepdim=True) if output.dim() else output
    samples = len(output) if output.dim() > 1 else 1
    return share**2 * float(_squares(centred.float(), tuple(range(output.dim())))) / samples


def _propagate(
    output: Tensor, anchors: Sequence[Tensor], metric: str, share: float, seeds: range
) -> None:
    """Backpropagate one random probe per seed, times ``share``, to the hooks on the way."""
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        aim = share * (_direction(output.detach(), metric, generator) * output).sum()
        torch.autograd.grad(aim, anchors, retain_graph=seed != seeds[-1], allow_unused=True)


def _logits(output: Any) -> Tensor:
    logits = _named(output) if isinstance(output, Mapping) else output
    logits = getattr(logits, "logits", logits)
    if isinstance(logits, (tuple, list)) and logits:
        logits = logits[0]
    if isinstance(logits, Tensor) and logits.requires_grad:
        return logits
    raise CalibrationError(
        "gradient probes need the output of the network: forward= must return its logits, with "
        f"gradients. {_explain(logits, output)}"
    )


def _named(output: Mapping[str, Any]) -> Any:
    """Return the logits of a dict, or the states that a network without a head returns."""
    return next((output[name] for name in _NAMES if output.get(name) is not None), None)


def _tokens(output: Tensor, masks: Sequence[Tensor]) -> float:
    """Return the mean number of tokens of outputs (samples, tokens, ...); of others, 1."""
    if output.dim() != 3:
        return 1.0
    fits = [mask for mask in masks if mask.shape == output.shape[:2]]
    tokens = float(fits[0].sum()) / len(output) if fits else output.shape[1]
    return max(1.0, tokens)


def _metric_of(output: Any, logits: Tensor) -> str:
    """Return the metric of an output: tokens have probabilities where logits are so called."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return "fisher" if named is not None and logits.dim() > 2 else "logits"


def _explain(logits: Any, output: Any) -> str:
    """Explain what a forward returned instead of logits with gradients, and what to change."""
    if isinstance(logits, Tensor):
        if not logits.is_floating_point():
            return f"It returned a {describe(logits)}, which has none: return the input of argmax."
        if logits.is_inference():
            return (
                f"It returned a {describe(logits)} created in torch.inference_mode: remove that "
                "from the network's forward, or from forward=."
            )
        return (
            f"It returned a {describe(logits)} without a history: remove torch.no_grad, detach() "
            "or .data from the network's forward, or from forward=."
        )
    if isinstance(output, Mapping):
        known = ", ".join(map(repr, list(output)[:6]))
        return f"It returned a dict without 'logits' ({known}): pick one, forward=lambda m, b: ..."
    return f"It returned {type(output).__name__}: return the network's output from forward=."


def _direction(output: Tensor, metric: str, generator: torch.Generator) -> Tensor:
    """Return v with E[v v'] = the metric, in the shape of ``output``; classes last."""
    signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
    if metric == "logits":
        return signs - signs.mean(-1, keepdim=True)
    shares = output.float().softmax(-1)
    root = shares.sqrt() * signs.float()
    return (root - shares * root.sum(-1, keepdim=True)).to(output)
