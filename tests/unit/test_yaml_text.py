"""Numbers with exponents are numbers; what else YAML says stays as it is."""

import pytest
import yaml

import fewbits
from fewbits.yaml_text import read_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2E5", -2e5),
        ("3.e2", 300.0),
        ("1.0e-4", 1e-4),
        ("4", 4),
        ("0.5", 0.5),
        ("e4", "e4"),
        ("1e", "1e"),
        ("'1e-4'", "1e-4"),
        ("layer1e4", "layer1e4"),
        ("[1e3, true, null]", [1000.0, True, None]),
    ],
)
def test_values(text, value):
    assert read_yaml(text) == value
    assert type(read_yaml(text)) is type(value)


def test_a_recipe_file_may_say_a_slope_with_an_exponent(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("rules:\n  - {match: '*', method: rdoq, slope: 1e-4}\n")
    assert fewbits.Recipe.from_file(path).rules[0].method == fewbits.RDOQ(slope=1e-4)


def test_nothing_but_plain_values_is_made():
    with pytest.raises(yaml.YAMLError):
        read_yaml("!!python/object/apply:os.getcwd []")
