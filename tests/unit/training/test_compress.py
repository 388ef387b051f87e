"""``fewbits.compress`` with methods that train: one path, the input model untouched."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fewbits
from fewbits.errors import CalibrationError, ConfigError
from fewbits.sources import load_data


def data(count=128):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 12, generator=generator)
    return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=32)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2))


@pytest.mark.parametrize("method", ["hemp", "lowbit", "pwfn"])
def test_a_method_that_trains_is_compressed_with_by_name(method, tmp_path):
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    coded = fewbits.compress(net, method, train=data(), training={"epochs": 2})
    assert len(coded.history) == 2
    assert all(entry.trained is not None for entry in coded.plan.entries)
    assert all(torch.equal(net.state_dict()[name], before[name]) for name in before)
    coded.save(tmp_path / "net.fewbits")
    loaded = fewbits.load(tmp_path / "net.fewbits", into=network())
    assert torch.equal(loaded[0].weight, coded.state_dict()["0.weight"])
    again = fewbits.compress(net, method, train=data(), training={"epochs": 2})
    assert again.data == coded.data


def test_a_recipe_compresses_first_and_then_trains():
    recipe = fewbits.Recipe(
        (fewbits.Rule("*", fewbits.GPFQ(bits=4)),),
        train=fewbits.Training(method=fewbits.HEMP(levels=15), epochs=1),
    )
    coded = fewbits.compress(network(), recipe, train=data())
    assert coded.contents.metadata["recipe"]["train"]["method"] == "hemp"
    assert coded.tensors["0.weight"].step.shape == (16,)  # a step for each row, as GPFQ gave it


def test_hemp_begins_at_smallest_unless_its_settings_are_for_floats():
    settings = {"train": data(), "training": {"epochs": 1}}
    begun = fewbits.compress(network(), "hemp", **settings)
    recipe = begun.contents.metadata["recipe"]
    assert recipe["rules"][0]["method"] == "rdoq"
    assert recipe["train"]["method"] == "hemp"
    for method in (fewbits.HEMP(levels=7), fewbits.HEMP(rate_weight=0.4), fewbits.LowBit()):
        floats = fewbits.compress(network(), method, **settings).contents.metadata["recipe"]
        assert floats["rules"][0]["method"] == method.name
    with pytest.raises(CalibrationError, match="the training data is empty"):
        fewbits.compress(network(), "hemp", train=[])


def test_a_recipe_with_hemp_in_its_rules_begins_at_the_floats():
    recipe = fewbits.Recipe((fewbits.Rule("*", fewbits.HEMP()),))
    coded = fewbits.compress(network(), recipe, train=data(), training={"epochs": 1})
    assert any("HEMP began at float weights" in note for note in coded.notes)


def test_evaluate_chooses_the_epoch():
    seen = []

    def score(model):
        seen.append(model)
        return float(-len(seen))  # the first epoch that may be chosen is the best

    training = {"epochs": 3, "select_from": 0.0}
    fewbits.compress(network(), "hemp", train=data(), training=training, evaluate=score)
    assert len(seen) >= 3


def test_a_first_stage_is_not_judged_and_training_keeps_the_method():
    recipe = {
        "rules": [{"match": "*", "method": "gpfq", "bits": 4}],
        "train": {"method": "hemp", "epochs": 1},
    }
    coded = fewbits.compress(
        network(), recipe, train=data(), training={"epochs": 2}, evaluate=lambda model: 0.5
    )
    assert len(coded.history) == 2
    assert coded.contents.metadata["recipe"]["train"]["method"] == "hemp"


def test_ranges_of_activations_are_from_the_calibration_that_is_given():
    seen = []

    class Watched(list):
        def __iter__(self):
            seen.append(True)
            return super().__iter__()

    calibration = Watched([torch.randn(32, 12)])
    fewbits.compress(
        network(), "lowbit", calibration, train=data(), training={"epochs": 1, "batch_size": 32}
    )
    assert seen


def test_data_by_name():
    coded = fewbits.compress(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        "hemp",
        train=load_data("digits"),
        training=fewbits.Training(epochs=1),
        metadata=False,
    )
    assert not coded.contents.metadata


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "hemp"}, "'hemp' needs training data: pass train="),
        ({"method": "hemp", "train": iter([])}, "can only be read once"),
        ({"method": "hemp", "train": [], "target_bytes": "1KB"}, "cannot be combined"),
        ({"method": "nearest", "train": []}, "train= is only used by methods that train"),
        ({"method": "hemp", "train": [], "time_budget": "10m"}, "^time_budget= belongs"),
        ({"method": "hemp", "train": [], "trace": "x.json"}, "^trace= belongs"),
        ({"method": "lowbit", "train": [], "forward": print}, "^forward= calls"),
        ({"method": "hemp", "train": "digits"}, "^train= takes batches"),
        ({"method": "hemp", "train": 5}, "^train= takes batches"),
        ({"method": "hemp", "train": [], "training": {"epoch": 3}}, "epoch"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        fewbits.compress(network(), **settings)
