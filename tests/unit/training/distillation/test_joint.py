"""Joint distillation against hand-written steps; nobody's gradient reaches anybody else."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from torch import nn
from torch.nn import functional as F

import fewbits
from fewbits.errors import CalibrationError, ConfigError
from fewbits.sources.base.dataset import ArraySplit
from fewbits.training import JointDistillation, JointWeights, fit
from fewbits.training.distillation.joint import joint_losses
from fewbits.training.distillation.losses import distillation_loss
from fewbits.training.loop.devices import make_fabric
from fewbits.training.loop.lr_schedules import PerStage, WarmCosine, constant
from fewbits.training.loop.optimizers import make_optimizer
from joint_network import X, Y, network

PLAIN = JointWeights()


def tuned(net, **settings):
    settings = {"weights": 2, "activations": 2, **settings}
    return fewbits.prepare(net, fewbits.LowBit(**settings), calibration=X)


def sgd(parameters, lr=0.01):
    return torch.optim.SGD([p for p in parameters if p.requires_grad], lr=lr, momentum=0.9)


def test_divergences_of_the_worked_example():
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    found = [
        float(distillation_loss(a, b, heat))
        for heat in (1.0, 4.0)
        for a, b in ((student, teacher), (teacher, student))
    ]
    assert found == pytest.approx([0.0671307, 0.0826079, 0.1196365, 0.1214962], abs=3e-6)


def test_losses_are_isolated():
    teacher = torch.randn(5, 4, requires_grad=True)
    students = [torch.randn(5, 4, requires_grad=True) for _ in range(2)]
    losses, taught = joint_losses(teacher, students, Y[:5], PLAIN)
    for own, loss in zip(students, losses, strict=True):
        grads = torch.autograd.grad(loss, [own, teacher, *students], allow_unused=True)
        assert grads[0] is not None
        assert grads[1] is None
        assert sum(g is not None for g in grads[2:]) == 1
    grads = torch.autograd.grad(taught, [teacher, *students], allow_unused=True)
    assert [g is None for g in grads] == [False, True, True]
    same, own = joint_losses(teacher, [teacher.detach()], Y[:5], PLAIN)
    labels = F.cross_entropy(teacher, Y[:5])
    torch.testing.assert_close(same[0], 0.7 * labels)
    torch.testing.assert_close(own, labels)


def test_a_step_is_the_hand_written_one():
    """The teacher learns from the students' logits before their step."""
    start = network()
    teacher, net = copy.deepcopy(start), copy.deepcopy(start)
    tuner = tuned(net)
    loss = JointDistillation(teacher, sgd(teacher.parameters()))
    optimizer = sgd([*net.parameters()])
    net.train()
    found, _ = loss(net, (X, Y))
    optimizer.zero_grad()
    found.backward()
    optimizer.step()

    other, hand = copy.deepcopy(start), copy.deepcopy(start)
    tuned(other)
    other.train()
    hand.train()
    slow, teaching = sgd([*other.parameters()]), sgd(hand.parameters())
    wanted, logits = hand(X), other(X)
    own = 0.7 * F.cross_entropy(logits, Y) + 0.7 * F.kl_div(
        logits.log_softmax(1), wanted.detach().softmax(1), reduction="batchmean"
    )
    theirs = F.cross_entropy(wanted, Y) + 0.5 * F.kl_div(
        wanted.log_softmax(1), logits.detach().softmax(1), reduction="batchmean"
    )
    own.backward()
    theirs.backward()
    slow.step()
    teaching.step()
    for ours, by_hand in ((net, other), (teacher, hand)):
        for a, b in zip(ours.parameters(), by_hand.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert tuner.stage == 0


def test_a_frozen_teacher_stays_as_it_is_and_hints_are_followed():
    net, teacher = network(), network()
    tuned(net)
    before = copy.deepcopy(teacher.state_dict())
    loss = JointDistillation(teacher, weights=JointWeights(hints=1.0), hints=[("4", "4")])
    net.train()
    with_hints, _ = loss(net, (X, Y))
    with_hints.backward()
    plain, _ = JointDistillation(teacher)(net, (X, Y))
    assert float(with_hints.detach()) > float(plain.detach())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


HINTED = JointWeights(hints=1.0)


@pytest.mark.parametrize(
    ("weights", "hints", "told"),
    [
        (PLAIN, [("4", "4")], "their weight is 0"),
        (HINTED, [], "no pair"),
        (HINTED, ["44"], "pairs of"),
        (HINTED, [("4", "44")], "teacher has no module '44'.* Did you mean '4'"),
    ],
)
def test_hints_that_would_do_nothing_are_refused(weights, hints, told):
    with pytest.raises(ConfigError, match=told):
        JointDistillation(network(), weights=weights, hints=hints)


def test_hints_of_unknown_modules_and_of_outputs_that_do_not_compare():
    net, teacher = network(), network()
    teacher.never = nn.Identity()
    for pair, told in (
        (("44", "4"), "student has no module '44'.* Did you mean '4'"),
        (("4", "6"), r"hints\[0\].*\(96, 8\).*\(96, 4\)"),
        (("4", "never"), "module 'never' of the teacher gave no output"),
    ):
        loss = JointDistillation(
            teacher, weights=HINTED, hints=[pair], forward=lambda net, batch: net[:7](batch[0])
        )
        with pytest.raises(ConfigError, match=told):
            loss(net, (X, Y))


def test_hints_reach_into_a_wrapped_network():
    net, teacher = network(), network()
    with torch.no_grad():
        net[4].weight.mul_(2)
    loss = JointDistillation(teacher, weights=HINTED, hints=[("4", "4"), ("0", "0")])
    with torch.no_grad():
        found = [loss(one, (X, Y))[0] for one in (net, nn.DataParallel(net))]
    assert found[0] == found[1]


def run(folder, epochs, resume=False, stop=None):
    net, teacher = network(), network()
    tuner = tuned(net, schedule="progressive")
    teaching = sgd(teacher.parameters())
    loss = JointDistillation(teacher, teaching, lr_schedule=WarmCosine(), total=epochs * 3)
    seen = []

    def judge(model):
        seen.append(tuner.stage)
        if stop is not None and len(seen) == stop:
            raise KeyboardInterrupt
        return 0.0

    fit(
        tuner,
        loss,
        ArraySplit(X, Y),
        epochs=epochs,
        batch_size=32,
        optimizer=make_optimizer(tuner, learning_rate=0.01),
        lr_schedule=PerStage(WarmCosine(), tuner.stage_ends),
        judge=judge,
        folder=folder,
        resume=resume,
    )
    state = {**net.state_dict(), **{f"t.{k}": v for k, v in teacher.state_dict().items()}}
    return {k: v.clone() for k, v in state.items()}, seen


def test_a_resumed_run_with_stages_and_a_teacher_ends_the_same(tmp_path):
    whole, seen = run(tmp_path / "whole", 6)
    assert seen == [0, 0, 0, 1, 1, 2, 2]  # the first is of the float network
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", 6, stop=5)
    again, _ = run(tmp_path / "part", 6, resume=True)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def unnormalized():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def taught(steps=4, **more):
    """Return the loss after ``fit``, its teacher, and whether autocast was on in any step of it."""
    net, teacher = unnormalized(), unnormalized()
    tuner = tuned(net)
    teaching = sgd(teacher.parameters(), lr=0.1)
    cast, own = [], teaching.step

    def watched(*args, **given):
        cast.append(torch.is_autocast_enabled("cpu"))
        return own(*args, **given)

    teaching.step = watched
    teacher[0].weight.register_hook(lambda _: cast.append(torch.is_autocast_enabled("cpu")))
    loss = JointDistillation(teacher, teaching, lr_schedule=WarmCosine(), total=steps)
    data = ArraySplit(X[: 24 * steps], Y[: 24 * steps])
    optimizer = make_optimizer(tuner, learning_rate=0.01)
    fit(tuner, loss, data, epochs=1, batch_size=24, optimizer=optimizer, **more)
    return loss, teacher.state_dict(), cast


def same_but_for(rounding, found, wanted):
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=rounding)


@pytest.mark.parametrize("accumulate", [2, 3])
def test_the_teacher_steps_with_the_student_and_not_with_micro_batches(accumulate):
    whole, wanted, _ = taught()
    loss, found, _ = taught(accumulate=accumulate)
    assert loss.steps == whole.steps == 4
    same_but_for(1e-6, found, wanted)


def test_micro_batches_in_a_loop_of_your_own():
    nets = []
    for parts in (1, 2):
        teacher, net = unnormalized(), unnormalized()
        tuned(net)
        joint = JointDistillation(teacher, sgd(teacher.parameters(), lr=0.1))
        for _ in range(3):
            if parts == 1:
                joint(net, (X, Y))
                continue
            for rows, weight in ((slice(0, 32), 1 / 3), (slice(32, 96), 2 / 3)):
                own, theirs, _ = joint.losses(net, (X[rows], Y[rows]))
                ((own + theirs) * weight).backward()
            joint.step()
        assert joint.steps == 3
        nets.append(teacher.state_dict())
    same_but_for(1e-6, nets[1], nets[0])


def test_gradients_left_from_an_earlier_training_do_not_count():
    teachers = [unnormalized() for _ in range(2)]
    F.cross_entropy(teachers[1](X), Y).backward()
    for teacher in teachers:
        net = unnormalized()
        JointDistillation(teacher, sgd(teacher.parameters()))(net, (X, Y))
    same_but_for(0, teachers[1].state_dict(), teachers[0].state_dict())


def test_bfloat16_is_for_the_forward_pass_only():
    _, wanted, _ = taught()
    _, found, cast = taught(fabric=make_fabric("cpu", precision="bfloat16"))
    assert len(cast) == 8
    assert not any(cast)
    same_but_for(5e-3, found, wanted)
    teacher = unnormalized()
    teacher[0].weight.register_hook(lambda _: cast.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        JointDistillation(teacher, sgd(teacher.parameters()))(unnormalized(), (X, Y))
    assert len(cast) == 9
    assert not cast[-1]


def float16():
    """Return a Fabric that does on the CPU what float16 does on a GPU."""
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[precision])
    fabric.launch()
    return fabric


def test_float16_gradients_of_the_teacher_are_scaled():
    _, wanted, _ = taught()
    loss, found, cast = taught(fabric=float16())
    assert not any(cast)
    assert loss.steps == 4
    same_but_for(5e-3, found, wanted)


def test_float16_without_a_scaler_is_refused():
    teacher = unnormalized()
    joint = JointDistillation(teacher, sgd(teacher.parameters()))
    with torch.autocast("cpu", torch.float16), pytest.raises(ConfigError, match="scaler"):
        joint(unnormalized(), (X, Y))
    with torch.autocast("cpu", torch.float16):
        loss, _ = JointDistillation(teacher)(unnormalized(), (X, Y))  # frozen, it needs none
    assert torch.isfinite(loss)


def test_the_optimizer_forgets_at_a_new_stage():
    net = network()
    tuner = tuned(net, schedule="two_stage")
    optimizer = make_optimizer(tuner, learning_rate=0.01)
    counts = []
    own = optimizer.step

    def counting(*args, **more):
        counts.append(len(optimizer.state))
        return own(*args, **more)

    optimizer.step = counting
    fit(
        tuner,
        fewbits.training.CrossEntropy(),
        ArraySplit(X, Y),
        epochs=2,
        batch_size=32,
        optimizer=optimizer,
    )
    assert counts[0] == 0
    assert counts[1] > 0
    assert counts[3] == 0  # the first step of the second stage
    assert counts[4] > 0


def test_rates_of_stages():
    rate = PerStage(lambda share: 1 - share, (0.5, 1.0))
    assert [rate(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == [1, 0.5, 1, 0.5, 0]
    for wrong in ((), (0.5,), (0.5, 0.5, 1.0), (1.0, 0.5)):
        with pytest.raises(ConfigError, match="ends"):
            PerStage(constant, wrong)


def test_what_is_missing_is_told():
    with pytest.raises(CalibrationError, match="labels"):
        JointDistillation(network())(network(), X)
    with pytest.raises(ConfigError, match="total"):
        JointDistillation(network(), lr_schedule=constant)
    with pytest.raises(ConfigError, match="temperature"):
        JointWeights(temperature=0)
