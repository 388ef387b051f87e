"""The loop with a stand-in for a tuner: what is trained, kept, resumed and told."""

from __future__ import annotations

import csv
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fewbits.errors import CalibrationError, ConfigError, ModelError, SourceError
from fewbits.sources.base.dataset import ArraySplit
from fewbits.training.data.augment import FlipAndCrop
from fewbits.training.distillation.losses import CrossEntropy
from fewbits.training.loop.loop import fit
from fewbits.training.loop.lr_schedules import WarmCosine
from fewbits.training.loop.optimizers import make_optimizer
from fewbits.training.loop.selection import Selection


class Rounding:
    """Pulls weights to multiples of a learned step: all verbs of a tuner, in a few lines."""

    stage = 0

    def __init__(self, model):
        self.model, self.progress, self.steps = model, 0.0, 0
        self.scale = nn.Parameter(torch.tensor(0.25))
        self.generator = torch.Generator().manual_seed(5)

    def _weights(self):
        return [p for p in self.model.parameters() if p.dim() > 1]

    def _levels(self, weight):
        return (weight / 0.25).round() * 0.25

    def penalty(self):
        apart = sum((w - self._levels(w).detach()).square().mean() for w in self._weights())
        return self.progress * (apart + (self.scale - 0.5).square())

    def step(self):
        self.steps += 1
        with torch.no_grad():
            for weight in self._weights():
                noise = torch.randn(weight.shape, generator=self.generator)
                weight.add_(noise, alpha=1e-4 * float(weight.grad.abs().max()))

    def advance(self, progress):
        self.progress = progress

    def parameters(self):
        return [self.scale]

    def measures(self):
        return {"bits_per_weight": 4.0 - self.progress}

    @contextmanager
    def quantized(self):
        kept = [w.detach().clone() for w in self._weights()]
        with torch.no_grad():
            for w in self._weights():
                w.copy_(self._levels(w))
        yield
        with torch.no_grad():
            for w, old in zip(self._weights(), kept, strict=True):
                w.copy_(old)

    def state_dict(self):
        state = self.generator.get_state()
        return {"scale": self.scale.detach(), "steps": self.steps, "random": state}

    def load_state_dict(self, state):
        self.scale.data.copy_(state["scale"])
        self.steps = state["steps"]
        self.generator.set_state(state["random"])


@pytest.fixture
def samples(digits):
    x, y, _, _ = digits
    return ArraySplit(x[:448], y[:448])


def network(dropout=0.2):
    torch.manual_seed(1)
    parts = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*parts, nn.Dropout(dropout), nn.Linear(288, 10))


def held_out(digits):
    x, y, _, _ = digits

    def judge(model):
        modes = model.training
        model.eval()
        with torch.no_grad():
            score = float((model(x[448:648]).argmax(1) == y[448:648]).float().mean())
        model.train(modes)
        return score

    return judge


class KilledError(Exception):
    """What stands for a kill in these tests."""


def train(samples, *, tuner=None, killed_at=None, loss=None, **settings):
    """Return (state of everything, Fitted), or None where it is killed."""
    tuner = tuner or Rounding(network())
    optimizer = make_optimizer(tuner, learning_rate=0.05, weight_decay=1e-4)
    steps, plain = 0, loss or CrossEntropy()

    def mortal(model, batch):
        nonlocal steps
        steps += 1
        if steps == killed_at:
            raise KilledError
        return plain(model, batch)

    given = {"epochs": 3, "batch_size": 64, "lr_schedule": WarmCosine(warm_up=0.1)} | settings
    try:
        fitted = fit(tuner, mortal, samples, optimizer=optimizer, **given)
    except KilledError:
        return None
    state = deepcopy({"model": tuner.model.state_dict(), "tuner": tuner.state_dict()})
    return state, fitted


def same(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


# what it does


def test_it_learns_and_tells(samples, digits, tmp_path):
    events = []
    state, fitted = train(
        samples,
        epochs=6,
        judge=held_out(digits),
        folder=tmp_path / "run",
        log_every=3,
        logs=("csv", "tensorboard"),
        progress=events.append,
    )
    assert fitted.score > 0.85 > fitted.reference
    assert fitted.steps == 42 == state["tuner"]["steps"]
    assert [row["epoch"] for row in fitted.history] == [1, 2, 3, 4, 5, 6]
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]
    assert [e.done for e in events if e.stage == "train"] == list(range(43))
    for word in ("loss", "penalty", "bits per weight", "accuracy", "held out"):
        assert word in events[-1].detail
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    told = sorted(7 * epoch + step for epoch in range(6) for step in (3, 6, 7))
    assert [int(row["step"]) for row in rows] == told
    assert {"loss", "penalty", "accuracy", "bits_per_weight", "held_out"} <= set(rows[0])
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_the_global_random_state_stays(samples):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    wanted = torch.rand(3), np.random.rand(3)  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    tuner = Rounding(network())
    torch.manual_seed(3)
    train(samples, tuner=tuner, epochs=1)
    assert torch.equal(torch.rand(3), wanted[0])
    assert np.array_equal(np.random.rand(3), wanted[1])  # noqa: NPY002


def test_it_is_the_loop_anyone_would_write(samples):
    ours, _ = train(samples, tuner=Rounding(network(0.0)), epochs=2, seed=4)
    tuner = Rounding(network(0.0))
    optimizer = make_optimizer(tuner, learning_rate=0.05, weight_decay=1e-4)
    from fewbits.training.data.batches import Sharing, TrainingBatches

    batches, rate = TrainingBatches(samples, 64, Sharing(), 4), WarmCosine(warm_up=0.1)
    for step, micros in enumerate([*batches.epoch(0), *batches.epoch(1)]):
        tuner.advance(step / 14)
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * rate(step / 14)
        (inputs, labels) = micros[0].batch
        loss = F.cross_entropy(tuner.model(inputs), labels) + tuner.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        tuner.step()
    assert same(ours["model"], tuner.model.state_dict())


def test_micro_batches_change_nothing_but_rounding(samples):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    whole, _ = train(samples, tuner=Rounding(deepcopy(plain)))
    parts, _ = train(samples, tuner=Rounding(deepcopy(plain)), accumulate=4)
    for name, value in whole["model"].items():
        assert torch.allclose(value, parts["model"][name], atol=1e-5)


# killed and resumed


@pytest.mark.parametrize("killed_at", [1, 2, 9, 14, 15, 21])
def test_killed_anywhere_and_resumed_it_ends_the_same(samples, digits, tmp_path, killed_at):
    settings = {
        "judge": held_out(digits),
        "augment": FlipAndCrop(flip=False),
        "selection": Selection(start=0.0),
        "log_every": 2,
        "save_seconds": 0.0,
    }
    whole, fitted = train(samples, folder=tmp_path / "whole", **settings)
    folder = tmp_path / "killed"
    assert train(samples, folder=folder, killed_at=killed_at, **settings) is None
    assert train(samples, folder=folder, killed_at=3, resume=True, **settings) is None or (
        killed_at == 21
    )
    resumed, again = train(samples, folder=folder, resume=True, **settings)
    assert same(whole, resumed)
    assert (again.epoch, again.score) == (fitted.epoch, fitted.score)
    assert again.history == fitted.history
    logs = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "killed")]
    assert logs[0] == logs[1]
    assert not list(folder.glob("*.writing"))


def test_a_finished_run_resumes_to_the_same_end(samples, digits, tmp_path):
    settings = {"judge": held_out(digits), "folder": tmp_path / "run"}
    first, _ = train(samples, **settings)
    again, fitted = train(samples, resume=True, killed_at=1, **settings)
    assert same(first, again)
    assert fitted.steps == 21


def test_a_torn_write_leaves_the_checkpoint_before(samples, tmp_path, monkeypatch):
    whole, _ = train(samples, folder=tmp_path / "whole")
    folder, written = tmp_path / "torn", 0
    save = torch.save

    def tearing(state, file):
        nonlocal written
        written += 1
        if written == 2:
            file.write(b"half of it")
            raise KilledError
        save(state, file)

    monkeypatch.setattr(torch, "save", tearing)
    assert train(samples, folder=folder) is None
    (folder / "0123456789abcdef.writing").write_bytes(b"left by a power cut")
    resumed, _ = train(samples, folder=folder, resume=True)
    assert same(whole, resumed)
    assert not list(folder.glob("*.writing"))


def test_own_loader_that_shuffles_resumes_too(samples, tmp_path):
    data = torch.utils.data.TensorDataset(samples.inputs, samples.labels)
    loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)
    settings = {"log_every": 2, "save_seconds": 0.0}
    whole, _ = train(loader, folder=tmp_path / "whole", **settings)
    assert train(loader, folder=tmp_path / "run", killed_at=11, **settings) is None
    resumed, _ = train(loader, folder=tmp_path / "run", resume=True, **settings)
    assert same(whole, resumed)


def test_other_settings_are_not_resumed(samples, tmp_path):
    train(samples, folder=tmp_path, epochs=2)
    with pytest.raises(ConfigError, match="another network"):
        train(samples, folder=tmp_path, epochs=3, resume=True)
    with pytest.raises(ConfigError, match="another network"):
        train(samples, folder=tmp_path, epochs=2, seed=1, resume=True)
    with pytest.raises(ConfigError, match="holds a run"):
        train(samples, folder=tmp_path, epochs=2)
    with pytest.raises(ConfigError, match="no run to resume"):
        train(samples, folder=tmp_path / "none", resume=True)
    with pytest.raises(ConfigError, match="folder="):
        train(samples, resume=True)


def test_damaged_checkpoints_say_so(samples, tmp_path):
    train(samples, folder=tmp_path, epochs=1)
    (tmp_path / "last.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(SourceError, match="cannot be read"):
        train(samples, folder=tmp_path, epochs=1, resume=True)
    torch.save({"schema": "other"}, tmp_path / "last.pt")
    with pytest.raises(SourceError, match="no checkpoint of this version"):
        train(samples, folder=tmp_path, epochs=1, resume=True)


# the epoch that is kept


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_best_epoch_is_kept(samples, tmp_path, on_disk):
    scores = iter([0.5, 0.1, 0.9, 0.9, 0.3])  # before training, then of four epochs
    seen = []

    def judge(model):
        seen.append(deepcopy(model.state_dict()))
        return next(scores)

    tuner = Rounding(network())
    folder = tmp_path if on_disk else None
    selection = Selection(start=0.0)
    state, fitted = train(
        samples, tuner=tuner, epochs=4, judge=judge, selection=selection, folder=folder
    )
    assert (fitted.epoch, fitted.score, fitted.reference) == (3, 0.9, 0.5)
    with tuner.quantized():
        assert same(tuner.model.state_dict(), seen[3])
    assert state["tuner"]["steps"] == 21
    kept = sorted(file.name for file in tmp_path.glob("epoch*"))
    assert kept == (["epoch-0003.pt"] if on_disk else [])


def test_a_drop_is_counted_from_the_float_network(samples):
    scores = iter([0.91, 0.88, 0.86])  # after three epochs; the rate of Rounding falls
    selection = Selection(start=0.0, max_drop=0.03)
    _, fitted = train(samples, judge=lambda model: next(scores), selection=selection, reference=0.9)
    assert (fitted.epoch, fitted.reference) == (2, 0.9)


def test_without_held_out_data_the_last_epoch_is_kept(samples):
    _, fitted = train(samples, epochs=2)
    assert fitted.epoch == 2
    assert np.isnan(fitted.score)


# what it refuses


def test_a_loss_that_is_not_finite_ends_the_run(samples):
    with pytest.raises(ModelError, match="learning rate"):
        train(samples, loss=lambda model, batch: model(batch[0]).mean() * float("nan"))


def test_settings_that_cannot_be(samples):
    with pytest.raises(ConfigError, match="epochs"):
        train(samples, epochs=0)
    with pytest.raises(ConfigError, match="multiple of 3"):
        train(samples, accumulate=3)
    with pytest.raises(CalibrationError, match="448 samples, less than one batch of 512"):
        train(samples, batch_size=512)
    with pytest.raises(CalibrationError, match="no batch"):
        train([])
    with pytest.raises(CalibrationError, match="labels"):
        train([torch.zeros(4, 1, 8, 8)])
