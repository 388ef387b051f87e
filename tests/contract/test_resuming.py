"""Every method gives one file: in memory, from weights on disk, and after interruptions."""

from __future__ import annotations

from collections import Counter

import pytest
from safetensors.torch import save_model

import fewbits
import interrupted
from fewbits.engine.lockstep import quantizer
from fewbits.methods import post_training_methods

MADE = {name: fewbits.METHODS[name]() for name in post_training_methods()}
RECIPES = {name: interrupted.recipe(method) for name, method in MADE.items()}
CASES = {name: {"method": recipe} for name, recipe in RECIPES.items()}
CASES["smallest"] = {"method": "smallest"}
CASES["gptq, 8-bit activations"] = {"method": RECIPES["gptq"], "activations": 8}
CASES["nearest, 8-bit activations"] = {"method": RECIPES["nearest"], "activations": 8}
CASES["little memory"] = {"method": RECIPES["qronos"], "max_live_bytes": 0}


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """A safetensors file of the network's weights."""
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_model(interrupted.network(), str(path))
    return path


@pytest.fixture
def encoded(monkeypatch):
    """Counts how often each weight is quantized."""
    counts: Counter[str] = Counter()
    before = quantizer._quantize

    def counting(network, work, *others, **settings):
        counts[work.target.name] += 1
        return before(network, work, *others, **settings)

    monkeypatch.setattr(quantizer, "_quantize", counting)
    return counts


@pytest.mark.parametrize("options", CASES.values(), ids=CASES.keys())
def test_one_file_whatever_the_way(options, on_disk, encoded, tmp_path):
    options = {**options, "calibration": interrupted.batches()}
    whole = fewbits.compress(interrupted.network(), **options)
    expected, once = interrupted.outcome(whole), dict(encoded)
    assert len(once) == len(whole.plan.entries) == 6
    assert set(once.values()) == {1}

    read = fewbits.compress(interrupted.empty(), **options, weights=on_disk)
    assert interrupted.outcome(read) == expected

    encoded.clear()
    options["resume"] = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt):
        fewbits.compress(interrupted.network(), **options, progress=interrupted.Interrupt(1))
    first = len(encoded)
    stop = interrupted.Interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        fewbits.compress(interrupted.empty(), **options, weights=on_disk, progress=stop)
    second = len(encoded)
    assert 1 <= first < second < 6
    resumed = fewbits.compress(interrupted.network(), **options)
    assert f"resumed after {second} of 6 weights" in str(resumed.notes)
    assert dict(encoded) == once  # what was finished is not quantized again
    assert _without_reruns(interrupted.outcome(resumed)) == _without_reruns(expected)


def test_a_finished_run_only_reads(on_disk, encoded, tmp_path):
    net, options = interrupted.network(), {"resume": tmp_path / "a"}
    options |= {"method": RECIPES["qronos"], "calibration": interrupted.batches()}
    first = fewbits.compress(net, **options)
    encoded.clear()
    again = fewbits.compress(interrupted.empty(), **options, weights=on_disk)
    assert not encoded
    expected = _without_reruns(interrupted.outcome(first))
    assert _without_reruns(interrupted.outcome(again)) == expected


def _without_reruns(outcome):
    """The number of passes that were repeated is that of the last run."""
    data, notes, *others = outcome
    return data, [note for note in notes if "were repeated" not in note], *others


def test_other_arguments_are_refused(on_disk, tmp_path):
    net, data = interrupted.network(), interrupted.batches()
    fewbits.compress(net, MADE["gptq"], data, resume=tmp_path / "a")
    fewbits.compress(
        interrupted.empty(), MADE["gptq"], data, weights=on_disk, resume=tmp_path / "a"
    )
    others = (
        {"method": MADE["gpfq"]},
        {"seed": 1},
        {"activations": 8},
        {"calibration": data[:2]},
    )
    for other in others:
        options = {"method": MADE["gptq"], "calibration": data, **other}
        with pytest.raises(fewbits.ConfigError, match="belongs to the compression of another"):
            fewbits.compress(net, **options, resume=tmp_path / "a")
    net.head.bias.data[0] += 1
    with pytest.raises(fewbits.ConfigError, match="belongs to the compression of another"):
        fewbits.compress(net, MADE["gptq"], data, resume=tmp_path / "a")
