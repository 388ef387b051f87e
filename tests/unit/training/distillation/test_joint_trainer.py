"""One teacher and several students in a loop of one's own."""

from __future__ import annotations

import copy

import pytest
import torch

import fewbits
from fewbits.errors import ConfigError
from fewbits.training import JointTrainer, JointWeights
from joint_network import X, Y, network

PLAIN, HINTED = JointWeights(), JointWeights(hints=1.0)


def sgd(parameters, lr=0.01):
    return torch.optim.SGD([p for p in parameters if p.requires_grad], lr=lr, momentum=0.9)


def several(count, **settings):
    students = []
    for bits in (2, 4)[:count]:
        method = fewbits.LowBit(weights=bits, activations=bits, **settings)
        tuner = fewbits.prepare(network(), method, calibration=X)
        tuner.model.train()
        own = dict.fromkeys([*tuner.model.parameters(), *tuner.parameters()])
        students.append((tuner, sgd(own)))
    return students


def test_several_students_at_once():
    teacher = network()
    trainer = JointTrainer(teacher, several(2), sgd(teacher.parameters()))
    before = copy.deepcopy(teacher.state_dict())
    first = trainer.step((X, Y))
    for _ in range(25):
        last = trainer.step((X, Y))
    assert len(first[0]) == 2
    assert last[1] < first[1]
    assert sum(last[0]) < sum(first[0])
    assert not torch.equal(teacher.state_dict()["0.weight"], before["0.weight"])


def test_hints_pull_every_student():
    figures = {}
    for weights, hints in ((PLAIN, []), (HINTED, [("1", "1"), ("4", "4")])):
        teacher = network()
        trainer = JointTrainer(teacher, several(2), weights=weights, hints=hints)
        losses, _ = trainer.step((X, Y))
        figures[len(hints)] = losses
        students = [tuner.model for tuner, _ in trainer.students]
        assert not any(m._forward_hooks for net in (teacher, *students) for m in (net[1], net[4]))
    parts = []
    for tuner, _ in several(2):
        teacher = network().eval()  # frozen; the student trains
        pairs = [(tuner.model[:end](X), teacher[:end](X)) for end in (2, 5)]
        parts.append(sum(float((a - b).detach().square().mean()) / 4 for a, b in pairs))
    wanted = [plain + part for plain, part in zip(figures[0], parts, strict=True)]
    assert figures[2] == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("weights", "hints", "told"),
    [
        (PLAIN, [("4", "4")], "their weight is 0"),
        (HINTED, [], "no pair"),
        (HINTED, [("4", "44")], "teacher has no module '44'"),
        (HINTED, [("44", "4")], "student has no module '44'"),
    ],
)
def test_hints_that_would_do_nothing_are_refused(weights, hints, told):
    with pytest.raises(ConfigError, match=told):
        JointTrainer(network(), several(1), weights=weights, hints=hints)


def test_autocast_is_for_the_forward_pass_only():
    teacher, cast = network(), []
    trainer = JointTrainer(teacher, several(1), sgd(teacher.parameters()))
    for net in (teacher, trainer.students[0][0].model):
        net[6].bias.register_hook(lambda _: cast.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        trainer.step((X, Y))
    assert cast == [False, False]
    with torch.autocast("cpu", torch.float16), pytest.raises(ConfigError, match="scaler"):
        trainer.step((X, Y))


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr("fewbits.training.distillation.joint_trainer.process_count", lambda: 2)
    with pytest.raises(ConfigError, match="one process"):
        JointTrainer(network(), several(1))


def stepping(trainer, first, last):
    for number in range(first, last):
        for tuner, _ in trainer.students:
            tuner.advance(number / 8)
        trainer.step((X[number * 8 :][:32], Y[number * 8 :][:32]))
    networks = [trainer.teacher, *(tuner.model for tuner, _ in trainer.students)]
    return [copy.deepcopy(net.state_dict()) for net in networks]


def fresh(count=2):
    teacher = network()
    students = several(count, schedule="stochastic", gates="layer", quantizer="lsq")
    return JointTrainer(teacher, students, sgd(teacher.parameters()))


def test_a_resumed_run_goes_on_to_the_same_bits(tmp_path):
    whole = stepping(fresh(), 0, 8)
    part = fresh()
    stepping(part, 0, 4)
    torch.save(part.state_dict(), tmp_path / "state.pt")
    again = fresh()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for wanted, found in zip(whole, stepping(again, 4, 8), strict=True):
        assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    with pytest.raises(ConfigError, match=r"2 students.* 1"):
        fresh(1).load_state_dict(part.state_dict())
    frozen = JointTrainer(network(), several(2))
    with pytest.raises(ConfigError, match="teacher_optimizer"):
        frozen.load_state_dict(part.state_dict())
