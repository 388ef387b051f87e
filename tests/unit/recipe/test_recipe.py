from __future__ import annotations

import pytest

from fewbits import GPFQ, RDOQ, ConfigError, Nearest, Recipe, Rule, SourceError

TEXT = """
seed: 3
raw_dtype: float16
prepare: [fold_batchnorm]
rules:
  - match: "*"
    method: gpfq
    bits: 3
  - {match: head, method: keep}
finish: [reestimate_batchnorm]
calibration_rows: 500
"""


def test_yaml_and_python_say_the_same(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(TEXT)
    recipe = Recipe.from_file(path)
    assert recipe == Recipe(
        rules=(Rule("*", GPFQ(bits=3)), Rule("head", None)),
        prepare=("fold_batchnorm",),
        finish=("reestimate_batchnorm",),
        seed=3,
        raw_dtype="float16",
        calibration_rows=500,
    )
    path.write_text(recipe.to_yaml())
    assert Recipe.from_file(path) == recipe
    assert Recipe.of(str(path)) == Recipe.of(recipe) == Recipe.of(recipe.to_dict()) == recipe


def test_one_method_absorbs_batchnorm_where_it_is_free():
    assert Recipe.of(GPFQ(bits=4)).prepare == ("fold_batchnorm",)
    assert Recipe.of(GPFQ(bits=4), calibrated=False).prepare == ()
    assert Recipe.of(Nearest(bits=4, per="tensor")).prepare == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rules": []}, "'rules' must be a list"),
        ({"rules": [7]}, "rule 1 must be a mapping"),
        ({"rules": [{"method": "gpfq"}]}, "rule 1 must be a mapping with 'match"),
        ({"rules": [{"match": "*", "method": "gpqf"}]}, "rule 1.*gpqf.*'gpfq'"),
        ({"rules": [{"match": "*", "method": "hempp"}]}, "rule 1.*hempp.*'hemp'"),
        ({"rules": [{"match": "*", "method": "gpfq", "bit": 4}]}, "rule 1.*bit.*bits"),
        ({"rules": [{"match": "*", "method": "gpfq", "bits": 40}]}, "rule 1.*bits must be"),
        ({"rules": [{"match": "*", "method": "keep", "bits": 4}]}, "unknown key 'bits'"),
        ({"rule": []}, "unknown key 'rule'.*'rules'"),
        ({"prepare": "fold_batchnorm"}, "'prepare' must be a list"),
        ({"prepare": ["fold"]}, "prepare stage must be one of fold_batchnorm"),
        ({"finish": ["fold_batchnorm"]}, "finish stage must be one of reestimate_batchnorm"),
        ({"seed": -1}, "seed must be an integer in"),
        ({"seed": "x"}, "seed must be"),
        ({"raw_dtype": "int8"}, "raw_dtype must be one of keep"),
        ({"calibration_rows": 0}, "calibration_rows must be"),
    ],
)
def test_bad_recipes_name_the_culprit(change, message):
    data = {"rules": [{"match": "*", "method": "gpfq", "bits": 4}]} | change
    with pytest.raises(ConfigError, match=message):
        Recipe.from_dict(data)


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(SourceError, match=r"nowhere\.yaml"):
        Recipe.from_file(tmp_path / "nowhere.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("rules: [")
    with pytest.raises(SourceError, match=r"bad\.yaml"):
        Recipe.from_file(bad)
    bad.write_text("- just\n- a list\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml.*mapping"):
        Recipe.from_file(bad)
    with pytest.raises(ConfigError, match="method must be a method"):
        Recipe.of(4)


def test_a_recipe_with_other_settings_of_its_methods():
    smallest = Recipe.of("smallest")
    auto = smallest.with_settings(quantizer="auto", slope=1e-3)
    assert auto.rules[0].method == RDOQ(quantizer="auto", slope=1e-3)
    assert (auto.prepare, auto.raw_dtype) == (smallest.prepare, smallest.raw_dtype)
    assert smallest.with_settings() == smallest
    kept = Recipe((Rule("*", GPFQ(clip=0.9)), Rule("head", None))).with_settings(bits=3)
    assert [rule.method for rule in kept.rules] == [GPFQ(clip=0.9, bits=3), None]
    with pytest.raises(ConfigError, match="'rdoq' has no setting 'bits'"):
        smallest.with_settings(bits=4)
    with pytest.raises(ConfigError, match="quantizes nothing, so no method has the settings slope"):
        Recipe.of("lossless").with_settings(slope=1e-3)
