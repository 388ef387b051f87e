"""Small parts: the choice of an epoch, learning rates, random numbers, optimizers, devices."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fewbits.errors import ConfigError, MissingExtraError
from fewbits.training.data.batches import preserved_random_state, seed_everything_at
from fewbits.training.loop.devices import check_fabric, make_fabric
from fewbits.training.loop.logs import CSVLog
from fewbits.training.loop.lr_schedules import WarmCosine, constant
from fewbits.training.loop.optimizers import make_optimizer
from fewbits.training.loop.selection import Candidate, Selection
from fewbits.training.loop.stepper import Stepper

# the choice of an epoch


def chosen(selection, rows, reference=0.9):
    best = None
    for epoch, (score, rate) in enumerate(rows, 1):
        new = Candidate(epoch, score, rate)
        if selection.may(epoch, len(rows)) and selection.better(new, best, reference):
            best = new
    return best.epoch


def test_the_best_score_is_chosen_and_of_equals_the_later():
    rows = [(0.95, 3.0), (0.8, 2.0), (0.9, 2.0), (0.9, 1.9), (math.nan, 1.0)]
    assert chosen(Selection(start=0.0), rows) == 1
    assert chosen(Selection(start=0.2), rows) == 4
    assert chosen(Selection(start=0.8), rows) == 5
    assert chosen(Selection(start=1.0), rows) == 5


def test_within_a_drop_the_lowest_rate_is_chosen():
    rows = [(0.91, 3.0), (0.89, 2.0), (0.895, 2.5), (0.85, 1.0)]
    assert chosen(Selection(start=0.0, max_drop=0.02), rows) == 2
    assert chosen(Selection(start=0.0, max_drop=0.0), rows) == 1
    assert chosen(Selection(start=0.0, max_drop=0.0), rows, reference=0.99) == 1


def test_selection_refuses():
    for wrong in ({"start": 1.5}, {"max_drop": -0.1}):
        with pytest.raises(ConfigError):
            Selection(**wrong)


# learning rates


def test_the_rate_rises_and_falls():
    rate = WarmCosine(warm_up=0.1, floor=0.01)
    assert [rate(0.0), rate(0.05), rate(0.1)] == pytest.approx([0.0, 0.5, 1.0])
    assert rate(0.55) == pytest.approx(0.505)
    assert rate(1.0) == pytest.approx(0.01)
    assert WarmCosine()(0.0) == constant(0.3) == 1.0
    for wrong in ({"warm_up": 1.0}, {"floor": -1.0}):
        with pytest.raises(ConfigError):
            WarmCosine(**wrong)


# random numbers


def test_a_position_gives_the_same_numbers_for_ever():
    draws = []
    for _ in range(2):
        seed_everything_at(1, 2)
        draws.append((random.random(), float(np.random.rand()), float(torch.rand(()))))  # noqa: NPY002
    assert draws[0] == draws[1]


def test_what_happens_inside_stays_there():
    seed_everything_at(7)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002

    def fail():
        with preserved_random_state(torch.device("cpu")):
            seed_everything_at(8)
            raise ValueError("out")

    with pytest.raises(ValueError, match="out"):
        fail()
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


# optimizers


class Tuner:
    def __init__(self):
        self.model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
        self.model[1].weight.requires_grad_(False)
        self.own = nn.Parameter(torch.ones(2, 2))

    def parameters(self):
        return [self.own, self.model[0].bias]


def test_only_weights_decay_and_nothing_comes_twice():
    tuner = Tuner()
    for name in ("sgd", "adamw"):
        groups = make_optimizer(tuner, name, learning_rate=0.1, weight_decay=0.5).param_groups
        assert [p is tuner.model[0].weight for p in groups[0]["params"]] == [True]
        rest = {id(p) for p in groups[1]["params"]}
        assert rest == {id(tuner.own), id(tuner.model[0].bias), id(tuner.model[1].bias)}
        assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    with pytest.raises(ConfigError, match="sgd, adamw"):
        make_optimizer(tuner, "adam", learning_rate=0.1)


# logs


def test_new_columns_keep_the_old_rows(tmp_path):
    log = CSVLog(tmp_path / "m.csv", None)
    log.write(1, {"a": 1.0})
    log.write(2, {"a": 2.0, "b": 0.5})
    assert (tmp_path / "m.csv").read_text() == "step,a,b\n1,1.0,\n2,2.0,0.5\n"
    with (tmp_path / "m.csv").open("a") as file:
        file.write("3,3.")  # what a kill may leave
    CSVLog(tmp_path / "m.csv", 1).write(2, {"a": 2.0, "b": 0.5})
    assert (tmp_path / "m.csv").read_text() == "step,a,b\n1,1.0,\n2,2.0,0.5\n"


# devices


def test_one_cpu_is_a_fabric():
    fabric = make_fabric("cpu")
    check_fabric(fabric)
    assert fabric.world_size == 1
    assert fabric.is_global_zero


def test_what_cannot_be_is_refused():
    for wrong in ({"device": "gpu"}, {"precision": "int8"}, {"devices": 0}):
        with pytest.raises(ConfigError):
            make_fabric(**wrong)
    with pytest.raises(ConfigError, match="bfloat16"):
        make_fabric("cpu", precision="float16")
    from lightning_fabric import Fabric

    with pytest.raises(ConfigError, match="need float32"):
        check_fabric(Fabric(accelerator="cpu", devices=1, precision="bf16-true"))
    sharded = type("FSDPStrategy", (), {})()
    with pytest.raises(ConfigError, match="FSDPStrategy is not supported"):
        check_fabric(SimpleNamespace(strategy=sharded))


def test_a_step_that_overflowed_is_none():
    scales = iter([8.0, 4.0, 4.0, 4.0, 4.0, 8.0])
    scaler = SimpleNamespace(get_scale=lambda: next(scales))
    stepper = Stepper.__new__(Stepper)
    precision = SimpleNamespace(scaler=scaler)
    stepper.fabric = SimpleNamespace(strategy=SimpleNamespace(precision=precision))
    stepper.optimizer, stepper.joint = SimpleNamespace(step=lambda: None), None
    assert [stepper._optimize() for _ in range(3)] == [False, True, True]


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(MissingExtraError, match=r'pip install "fewbits\[train\]"'):
        make_fabric("cpu")
    assert issubclass(MissingExtraError, ImportError)


@pytest.mark.slow
def test_without_the_extra_the_package_is_imported():
    code = (
        "import sys; sys.modules['lightning_fabric'] = None\n"
        "import fewbits.training\nfrom fewbits.training.loop.devices import make_fabric\n"
        "from fewbits.errors import MissingExtraError\n"
        "try:\n    make_fabric('cpu')\nexcept MissingExtraError as e:\n    print(e)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "fewbits[train]"' in told.stdout
