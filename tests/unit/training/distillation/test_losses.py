"""Losses against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fewbits.errors import CalibrationError, ConfigError, ModelError
from fewbits.training.distillation.losses import CrossEntropy, Distillation, distillation_loss


@pytest.fixture
def nets():
    torch.manual_seed(0)
    return nn.Linear(6, 4), nn.Linear(6, 4)


def test_cross_entropy_tells_the_accuracy(nets):
    x, y = torch.randn(20, 6), torch.randint(0, 4, (20,))
    loss, told = CrossEntropy()(nets[0], (x, y))
    assert torch.equal(loss, F.cross_entropy(nets[0](x), y))
    assert float(told["accuracy"]) == pytest.approx(
        float((nets[0](x).argmax(1) == y).float().mean())
    )


def test_distillation_is_the_divergence_of_softened_outputs():
    ours, theirs = torch.randn(5, 3), torch.randn(5, 3)
    slow = 0.0
    for a, b in zip(ours.double() / 4, theirs.double() / 4, strict=True):
        p, q = b.exp() / b.exp().sum(), a.exp() / a.exp().sum()
        slow += float((p * (p / q).log()).sum())
    assert float(distillation_loss(ours, theirs, 4.0)) == pytest.approx(16 * slow / 5, rel=1e-5)
    assert float(distillation_loss(ours, ours, 4.0)) == pytest.approx(0.0, abs=1e-6)


def test_both_terms_are_mixed_and_the_teacher_learns_nothing(nets):
    student, teacher = nets
    teacher.train()
    x, y = torch.randn(8, 6), torch.randint(0, 4, (8,))
    loss = Distillation(teacher, weight=0.25, temperature=2.0)
    assert not teacher.training
    total, told = loss(student, (x, y))
    distil = distillation_loss(student(x), teacher(x), 2.0)
    wanted = 0.75 * F.cross_entropy(student(x), y) + 0.25 * distil
    assert torch.allclose(total, wanted, rtol=1e-6)
    assert set(told) == {"distil", "accuracy"}
    total.backward()
    assert student.weight.grad is not None
    assert teacher.weight.grad is None


def test_labels_are_optional_where_only_the_teacher_counts(nets):
    student, teacher = nets
    x = torch.randn(8, 6)
    total, told = Distillation(teacher, weight=1.0)(student, x)
    assert torch.equal(total, distillation_loss(student(x), teacher(x), 4.0))
    assert set(told) == {"distil"}
    with pytest.raises(CalibrationError, match="weight 1"):
        Distillation(teacher, weight=0.5)(student, x)


def test_failures_name_the_batch(nets):
    with pytest.raises(ModelError, match=r"float32 tensor \(8, 5\)"):
        CrossEntropy()(nets[0], (torch.randn(8, 5), torch.zeros(8, dtype=torch.int64)))
    with pytest.raises(ModelError, match="expected logits"):
        CrossEntropy()(nn.Flatten(0), (torch.randn(8, 5), torch.zeros(8, dtype=torch.int64)))
    for wrong in ({"weight": 1.5}, {"temperature": 0.0}):
        with pytest.raises(ConfigError):
            Distillation(nets[1], **wrong)
