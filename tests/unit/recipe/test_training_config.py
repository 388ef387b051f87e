"""The section ``train`` of a recipe: there and back, and what it refuses."""

from __future__ import annotations

from dataclasses import fields

import pytest

import fewbits
from fewbits.errors import ConfigError
from fewbits.methods import METHODS, training_methods
from fewbits.recipe.training_config import Training, loop_settings

EVERYTHING = Training(
    method=fewbits.HEMP(levels=7, order=2),
    epochs=3,
    batch_size=32,
    accumulate=2,
    optimizer="adamw",
    learning_rate=1e-3,
    momentum=0.8,
    weight_decay=1e-4,
    warm_up=0.1,
    clip=1.0,
    relative_clip=0.2,
    distil=0.5,
    temperature=2.0,
    augment=("flip", "crop"),
    padding=2,
    prune=fewbits.Ramp(0.0, 0.9, until=0.5),
    vector_bits=8,
    norms="live",
    sort=True,
    hold_out=0.2,
    select_from=0.5,
    max_drop=0.01,
)


def test_every_setting_goes_there_and_back():
    assert all(getattr(EVERYTHING, f.name) != f.default for f in fields(Training))
    rules = (fewbits.Rule("*", fewbits.GPFQ(bits=3)), fewbits.Rule("linear", None))
    for train in (EVERYTHING, Training(method=fewbits.HEMP())):
        recipe = fewbits.Recipe(rules, prepare=("fold_batchnorm",), seed=5, train=train)
        assert fewbits.Recipe.from_dict(recipe.to_dict()) == recipe
        import yaml

        assert fewbits.Recipe.from_dict(yaml.safe_load(recipe.to_yaml())) == recipe


def test_stages_follow_each_other():
    rules = (fewbits.Rule("*", fewbits.GPFQ(bits=3)), fewbits.Rule("linear", None))
    recipe = fewbits.Recipe(rules, prepare=("fold_batchnorm",), seed=5, train=EVERYTHING)
    first, second = recipe.first_stage, recipe.training_stage
    assert (first.rules, first.prepare, first.train) == (rules, ("fold_batchnorm",), None)
    assert [rule.method for rule in second.rules] == [EVERYTHING.method, None]
    assert (second.prepare, second.seed, second.train.epochs) == ((), 5, 3)
    assert second.first_stage is None
    alone = fewbits.Recipe((fewbits.Rule("*", fewbits.HEMP()),), train=Training(epochs=2))
    assert alone.first_stage is None
    assert alone.training_stage is alone
    plain = fewbits.Recipe(rules)
    assert plain.first_stage == plain
    assert plain.training_stage is None


def test_keys_are_the_loops_or_the_methods():
    told = {"method": "hemp", "levels": 5, "epochs": 2, "learning_rate": 0.1}
    train = Training.from_dict(told)
    assert (train.method, train.epochs) == (fewbits.HEMP(levels=5), 2)
    for kind in map(METHODS.__getitem__, training_methods()):
        assert not {f.name for f in fields(kind)} & set(loop_settings())


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"epochs": 2, "epoch": 3}, "Did you mean 'epochs'"),
        ({"method": "hemp", "level": 3}, "Did you mean 'levels'"),
        ({"method": "gpfq"}, "hemp"),
        ({"method": "hemp", "epochs": 0}, "epochs must be an integer >= 1"),
        ({"method": "hemp", "augment": ["turn"]}, "augment"),
        ({"method": "hemp", "learning_rate": 0}, "learning_rate"),
        ({"method": "hemp", "warm_up": 1}, r"warm_up must be a number in \[0, 1\)"),
        ({"method": "hemp", "distil": "yes"}, "distil"),
        ({"method": "hemp", "norms": "dead"}, "norms must be one of"),
        ({"method": "hemp", "sort": "yes"}, "sort must be true or false"),
        ([], "mapping"),
    ],
)
def test_what_is_wrong_is_named(data, told):
    with pytest.raises(ConfigError, match=told):
        Training.from_dict(data)


def test_a_recipe_names_one_method_that_trains():
    rules = (fewbits.Rule("*", fewbits.HEMP()),)
    with pytest.raises(ConfigError, match="both"):
        fewbits.Recipe(rules, train=Training(method=fewbits.HEMP()))
    with pytest.raises(ConfigError, match="none"):
        fewbits.Recipe((fewbits.Rule("*", fewbits.GPFQ()),), train=Training())
    with pytest.raises(ConfigError, match=r"a fewbits\.Training"):
        fewbits.Recipe(rules, train={"epochs": 2})


def test_compress_does_not_pass_over_training(digits_net):
    rules = (fewbits.Rule("*", fewbits.Nearest(bits=4)),)
    recipe = fewbits.Recipe(rules, train=Training(method=fewbits.HEMP()))
    with pytest.raises(ConfigError, match="'hemp' needs training data"):
        fewbits.compress(digits_net, recipe)
    with pytest.raises(ConfigError, match="'hemp' needs training data"):
        fewbits.compress(digits_net, fewbits.HEMP())
    assert fewbits.compress(digits_net, recipe.first_stage).size_report().file_bytes > 0
