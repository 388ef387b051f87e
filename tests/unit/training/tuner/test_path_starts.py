"""Training from levels that are paths of a trellis keeps them so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fewbits
from fewbits.coding.trellis import follows
from fewbits.errors import ConfigError
from fewbits.training import Magnitude


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16))


def _images() -> Tensor:
    return torch.randn(128, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def paths() -> fewbits.CompressionResult:
    method = fewbits.RDOQ(slope=1e-3, quantizer="trellis")
    return fewbits.compress(_network(), method, _images())


def _indices(coded: fewbits.CodedModel) -> dict[str, np.ndarray]:
    names = ("0.weight", "2.weight")
    return {name: coded.contents.tensors[name].index for name in names}  # type: ignore[union-attr]


def _trained(start: fewbits.CodedModel, rate: float, **settings: object) -> fewbits.CodedModel:
    model, x = _network(), _images()
    tuner = fewbits.prepare(model, fewbits.HEMP(**settings), start=start)  # type: ignore[arg-type]
    y = torch.randn(128, 16, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.SGD(tuner.groups(rate), lr=rate)
    for done in range(40):
        loss = nn.functional.mse_loss(model(x), y) + tuner.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tuner.step()
        tuner.advance((done + 1) / 40)
    return tuner.finish()


@pytest.mark.parametrize("forward", ["quantized", "continuous"])
def test_paths_stay_paths(paths: fewbits.CompressionResult, forward: str) -> None:
    coded = _trained(paths, 0.3, forward=forward)
    before, after = _indices(paths), _indices(coded)
    for name, index in after.items():
        assert follows(before[name])
        assert follows(index)
        assert forward == "continuous" or (index != before[name]).any()  # a pull holds them
    assert len(coded.encode("smallest")) < 1.15 * len(paths.encode("smallest"))


def test_nothing_moves_without_training(paths: fewbits.CompressionResult) -> None:
    model = _network()
    coded = fewbits.prepare(model, fewbits.HEMP(), start=paths).finish(fold=False)
    for name, index in _indices(coded).items():
        np.testing.assert_array_equal(index, _indices(paths)[name])


def test_the_forward_pass_computes_with_the_paths(paths: fewbits.CompressionResult) -> None:
    model = _network()
    tuner = fewbits.prepare(model, fewbits.HEMP(), start=paths)
    with torch.no_grad():
        tuner.weights[0].parameter.add_(0.02 * torch.randn(24, 12))
    seen = model[0].weight.detach().clone()
    tuner.finish(fold=False)
    torch.testing.assert_close(model[0].weight.detach(), seen)


def test_scalar_levels_are_rounded_one_by_one() -> None:
    start = fewbits.compress(_network(), fewbits.RDOQ(slope=1e-3), _images())
    tuner = fewbits.prepare(_network(), fewbits.HEMP(), start=start)
    assert not any(weight.paths for weight in tuner.weights)


@pytest.mark.parametrize(
    "arguments", [{"zeros": True}, {"prune": Magnitude(share=0.5)}], ids=["zeros", "prune"]
)
def test_zeros_that_must_stay_are_refused(
    paths: fewbits.CompressionResult, arguments: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match=r"0\.weight.*paths of a trellis"):
        fewbits.prepare(_network(), fewbits.HEMP(), start=paths, **arguments)  # type: ignore[arg-type]


def test_a_method_with_levels_of_its_own_may_prune(paths: fewbits.CompressionResult) -> None:
    method = fewbits.LowBit(activations=32)
    tuner = fewbits.prepare(_network(), method, start=paths, zeros=True)
    assert not any(weight.paths for weight in tuner.weights)


def test_levels_by_rate_are_refused(paths: fewbits.CompressionResult) -> None:
    with pytest.raises(ConfigError, match="assign='rate'"):
        fewbits.prepare(_network(), fewbits.HEMP(assign="rate"), start=paths)
