"""Published networks on their own data, by the names a person would type. Skipped where absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import fewbits
from fewbits.evaluation.metrics import evaluate
from fewbits.sources import load_data, load_model

DATA = Path(os.environ.get("FEWBITS_DATA") or Path(__file__).parents[2].parent / "shared" / "data")


def _need(*names: str) -> None:
    for name in names:
        if not (DATA / name).exists():
            pytest.skip(f"{name} is not in {DATA}; set FEWBITS_DATA")


@pytest.mark.parametrize(
    ("name", "weights", "options", "method", "drop", "limit"),
    [
        pytest.param(
            "lenet-300-100",
            "lenet_300_100",
            "mean=0.1307&std=0.3081",
            fewbits.GPFQ(bits=3),
            0.01,
            90_000,
            id="lenet-300-100 at 3 bits",
        ),
        pytest.param(
            "lenet-5",
            "lenet5_caffe",
            "std=1.00392156862745",
            fewbits.GPFQ(bits=4),
            0.003,
            200_000,
            id="lenet-5 at 4 bits",
        ),
    ],
)
def test_lenets_on_mnist(name, weights, options, method, drop, limit, tmp_path):  # noqa: PLR0917
    _need("mnist", "lenet_mnist")
    model = load_model(f"builtin:{name}", DATA / "lenet_mnist" / f"{weights}.safetensors").module
    data = load_data(f"idx:{DATA / 'mnist'}?{options}")
    calibration = data.batches("calibration", 128, 512, seed=0)
    test = data.batches("test", 500, 2000, seed=None)
    before = evaluate(model, test).accuracy
    coded = fewbits.compress(model, method, calibration=calibration)
    assert coded.save(tmp_path / "net.fewbits") < limit
    blank = load_model(f"builtin:{name}").module.eval()
    after = evaluate(fewbits.load(tmp_path / "net.fewbits", into=blank), test).accuracy
    assert after > before - drop
