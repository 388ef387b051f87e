"""Sampled weights: their law, their gradients, and noise that follows from a count."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fewbits.methods.trained.pwfn import noisy_weights as noisy
from fewbits.methods.trained.pwfn.noisy_weights import NoiseSource, NoisyWeight
from fewbits.ops.levels.powers_of_two import LEAST


def sampled(deviation, seed=0, **settings):
    how = {"trained": True, "sampled": True, "kept": True, **settings}
    return NoisyWeight(deviation, NoiseSource(seed), **how)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_samples_have_the_mean_and_the_deviation():
    mean = normal(4, 5)
    deviation = torch.linspace(0, 0.1, 20).reshape(4, 5) - 0.005  # one below zero
    module = sampled(deviation.clone())
    draws = torch.stack([module(mean) for _ in range(2000)]).double()
    torch.testing.assert_close(draws.mean(0), mean.double(), rtol=0, atol=0.01)
    wanted = deviation.clamp_min(LEAST).double()
    torch.testing.assert_close(draws.std(0), wanted, rtol=0.08, atol=1e-7)


def test_in_evaluation_mode_and_while_inactive_the_weight_passes():
    mean = normal(4, 5)
    module = sampled(torch.full((4, 5), 0.1)).eval()
    assert module(mean) is mean
    module.train()
    assert not torch.equal(module(mean), mean)
    module.active = False
    assert module(mean) is mean


def test_gradients_are_those_of_the_sample_and_none_of_fixed_weights():
    mean = nn.Parameter(normal(4, 5))
    module = sampled(torch.full((4, 5), 0.1))
    module.fixed = normal(4, 5, seed=1) > 0
    slope = normal(4, 5, seed=2)
    (module(mean) * slope).sum().backward()
    free = ~module.fixed
    torch.testing.assert_close(mean.grad, slope * free)
    torch.testing.assert_close(module.deviation.grad, slope * module.noise * free)


def test_deviations_at_their_bound_still_get_a_gradient():
    mean, module = nn.Parameter(normal(3)), sampled(torch.full((3,), -0.01))
    module(mean).sum().backward()
    assert (module.deviation.grad != 0).all()


def test_without_samples_only_fixed_weights_are_held():
    mean = nn.Parameter(normal(4))
    module = sampled(torch.ones(4), trained=False, sampled=False)
    module.fixed = torch.tensor([True, False, True, False])
    assert torch.equal(module(mean), mean)
    module(mean).sum().backward()
    assert mean.grad.tolist() == [0, 1, 0, 1]


def test_noise_follows_from_seed_count_and_process(monkeypatch):
    like = torch.zeros(50)
    one, two = NoiseSource(3), NoiseSource(3)
    first = [one.draw(like) for _ in range(3)]
    assert all(torch.equal(a, two.draw(like)) for a in first)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(NoiseSource(4).draw(like), first[0])
    two.count = 1
    assert torch.equal(two.draw(like), first[1])
    assert torch.equal(copy.deepcopy(one).draw(like), one.draw(like))
    monkeypatch.setattr(noisy, "in_group", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert not torch.equal(NoiseSource(3).draw(like), first[0])


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    NoiseSource(0).draw(torch.zeros(5))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_stay_theirs(dtype):
    mean = nn.Parameter(normal(6).to(dtype))
    module = sampled(torch.full((6,), 0.1))
    found = module(mean)
    assert found.dtype == dtype
    found.sum().backward()
    assert module.deviation.grad.dtype == torch.float32
