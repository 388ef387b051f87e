"""Evaluate a classifier with noise on its weights, draw by draw and as an ensemble."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..engine.layers.targets import biases_beside, survey
from ..engine.network.batches import Forward, call_model
from ..errors import CalibrationError, ConfigError, require
from ..progress import Progress, ProgressEvent, silent
from .metrics import answers

__all__ = ["NoisyEvaluation", "calibration_error", "ensemble", "noise_resilience"]

Noise: TypeAlias = "float | Mapping[str, Tensor]"


@dataclass(frozen=True)
class NoisyEvaluation:
    """Results of several noisy draws of a network, alone and as an ensemble.

    Attributes:
        noise: standard deviation of the noise on every weight; None if each weight has its own.
        draws: number of draws; 1 without noise.
        samples: number of labelled samples.
        accuracy: top-1, mean over the draws.
        deviation: standard deviation of the draws' accuracies; 0 for a single draw.
        lowest: accuracy of the worst draw.
        highest: accuracy of the best draw.
        ensemble_accuracy: top-1 of the probabilities averaged over the draws.
        ensemble_loss: mean negative log-likelihood of the averaged probabilities, in nats.
        ensemble_ece: their expected calibration error, see :func:`calibration_error`.
    """

    noise: float | None
    draws: int
    samples: int
    accuracy: float
    deviation: float
    lowest: float
    highest: float
    ensemble_accuracy: float
    ensemble_loss: float
    ensemble_ece: float

    def to_dict(self) -> dict[str, float | int | None]:
        """Return JSON-ready values."""
        return asdict(self)


def noise_resilience(
    model: nn.Module,
    batches: Iterable[Any],
    noise: Sequence[float],
    *,
    draws: int = 20,
    seed: int = 0,
    forward: Forward = call_model,
    progress: Progress = silent,
) -> list[NoisyEvaluation]:
    """Evaluate a network with Gaussian noise on all weights and biases of its layers.

    Parameters of normalization layers and embedding tables get no noise. The network is restored
    afterwards. Draw k uses the same noise for every standard deviation, only scaled.

    Args:
        model: a float network, or one loaded from a compressed file.
        batches: labelled, as for :func:`fewbits.evaluation.metrics.evaluate`; kept in memory if
            they can be read only once.
        noise: standard deviations, in the unit of the weights; 0 is the network itself.
        draws: draws for each standard deviation.
        seed: seed of the noise.
        forward: ``forward(model, batch) -> logits``.
        progress: called after every draw.

    Raises:
        ConfigError: invalid argument.
        CalibrationError, ModelError: see :func:`evaluate`.
    """
    for size in noise:
        good = isinstance(size, (int, float)) and 0 <= size < float("inf")
        require(good, "noise", "standard deviations >= 0", size)
    names = _layer_names(model)
    held = batches if isinstance(batches, (list, tuple)) else list(batches)
    results = []
    for size in noise:
        own = {name: torch.tensor(float(size)) for name in names}
        count = draws if size else 1
        how: dict[str, Any] = {
            "draws": count,
            "seed": seed,
            "forward": forward,
            "progress": progress,
        }
        results.append(_evaluate_draws(model, held, own, noise=float(size), **how))
    return results


def ensemble(
    model: nn.Module,
    batches: Iterable[Any],
    deviations: Mapping[str, Tensor],
    *,
    draws: int = 20,
    seed: int = 0,
    forward: Forward = call_model,
    progress: Progress = silent,
) -> NoisyEvaluation:
    """Evaluate samples of a posterior over the weights, alone and as an ensemble.

    Labels are used for scoring only, never to weight the samples.

    Args:
        model: network with the means of the weights.
        batches: labelled; kept in memory if they can be read only once.
        deviations: state-dict name to the standard deviation of each weight, in its shape:
            ``tuner.session.deviations()`` after training with PWFN.
        draws: samples of the posterior.
        seed: seed of the samples.
        forward: ``forward(model, batch) -> logits``.
        progress: called after every draw.

    Raises:
        ConfigError: ``deviations`` names a weight that the network lacks, or has another shape.
        CalibrationError, ModelError: see :func:`evaluate`.
    """
    state = model.state_dict()
    for name, deviation in deviations.items():
        shape = tuple(state[name].shape) if name in state else None
        fits = f"a weight of the network, of shape {tuple(deviation.shape)}"
        require(shape == tuple(deviation.shape), f"deviations[{name!r}]", fits, shape)
    held = batches if isinstance(batches, (list, tuple)) else list(batches)
    how: dict[str, Any] = {"draws": draws, "seed": seed, "forward": forward, "progress": progress}
    return _evaluate_draws(model, held, deviations, noise=None, **how)


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Return the expected calibration error of (n, classes) probabilities, in [0, 1].

    Samples fall into ``bins`` of equal width by their largest probability; the result is the mean
    over samples of the distance between a bin's mean probability and its accuracy (Guo et al.
    2017).
    """
    confidence, answer = probabilities.double().max(1)
    right = (answer == labels).double()
    place = (confidence * bins).long().clamp_max(bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, confidence - right)
    return float(gaps.abs().sum()) / max(1, len(labels))


def _evaluate_draws(
    model: nn.Module,
    batches: Sequence[Any],
    deviations: Mapping[str, Tensor],
    *,
    noise: float | None,
    draws: int,
    seed: int,
    forward: Forward,
    progress: Progress,
) -> NoisyEvaluation:
    require(isinstance(draws, int) and draws >= 1, "draws", "an integer >= 1", draws)
    accuracies, labels = [], torch.zeros(0, dtype=torch.int64)
    total = torch.zeros(())
    what = "weight noise" if noise is None else f"weight noise {noise:g}"
    for draw in range(draws):
        with _with_noise(model, deviations, seed, draw):
            labels, probabilities = _probabilities(model, batches, forward)
        accuracies.append(float((probabilities.argmax(1) == labels).double().mean()))
        total = total + probabilities
        progress(ProgressEvent(what, draw + 1, draws))
    mean = total / draws
    return NoisyEvaluation(
        noise=noise,
        draws=draws,
        samples=len(labels),
        accuracy=statistics.mean(accuracies),
        deviation=statistics.stdev(accuracies) if draws > 1 else 0.0,
        lowest=min(accuracies),
        highest=max(accuracies),
        ensemble_accuracy=float((mean.argmax(1) == labels).double().mean()),
        ensemble_loss=float(F.nll_loss(mean.clamp_min(1e-300).log(), labels)),
        ensemble_ece=calibration_error(mean, labels),
    )


def _probabilities(
    model: nn.Module, batches: Sequence[Any], forward: Forward
) -> tuple[Tensor, Tensor]:
    """Return labels (n,) and float64 probabilities (n, classes), on the CPU."""
    parts = []
    for y, z in answers(model, batches, forward):
        if y.dim() != 1:
            raise CalibrationError(
                "noise on weights is measured on classifiers, one label for each sample; this data "
                "has one for each token."
            )
        parts.append((y.cpu(), z.double().softmax(1).cpu()))
    if not parts:
        raise CalibrationError("nothing to evaluate: the data yielded no batches.")
    labels, probabilities = (torch.cat(column) for column in zip(*parts, strict=True))
    return labels, probabilities


@contextmanager
def _with_noise(
    model: nn.Module, deviations: Mapping[str, Tensor], seed: int, draw: int
) -> Iterator[None]:
    """Add noise to the weights of ``model``, and restore them afterwards."""
    state = model.state_dict()
    saved = {name: state[name].clone() for name in deviations}
    word = int(np.random.SeedSequence([seed, draw]).generate_state(1, np.uint64)[0]) >> 1
    generator = torch.Generator().manual_seed(word)
    try:
        with torch.no_grad():
            for name, deviation in deviations.items():
                values = state[name]
                noise = torch.randn(values.shape, generator=generator)
                values.add_((noise * deviation.cpu()).to(values))
        yield
    finally:
        with torch.no_grad():
            for name, values in saved.items():
                state[name].copy_(values)


def _layer_names(model: nn.Module) -> list[str]:
    """Return the names of all layer weights except embedding tables, and of their biases."""
    surveyed = survey(model)
    layers = [t for t in surveyed.targets if t.also or "Embedding" not in t.kind]
    if not layers:
        raise ConfigError(f"{type(model).__name__} has no layer with weights to add noise to.")
    weights = [name for target in layers for name in (target.name, *target.also)]
    return [*(target.name for target in layers), *biases_beside(weights, surveyed.others)]
