"""Numbers with exponents are numbers; what else YAML says stays as it is."""

import pytest
import yaml

import fewbits
from cpu_time import within
from fewbits.errors import ConfigError, SourceError
from fewbits.files import yaml_text
from fewbits.files.yaml_text import read_yaml


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


def bomb(levels=30):
    """A document of a few hundred bytes that stands for 2 ** levels values."""
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]" for k in range(1, levels)]
    return "\n".join([*lines, f"rules: *a{levels - 1}"])


def merges(levels=30):
    """The same, by merge keys."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{k}: &a{k} {{<<: [*a{k - 1}, *a{k - 1}]}}" for k in range(1, levels)]
    return "\n".join(lines)


HOSTILE = {
    "aliases": (bomb(), "more than 100,000 values with"),
    "merge keys": (merges(), "more than 100,000 values with"),
    "long text, often": (
        f"a: &a {'x' * 10**5}\nb: [{', '.join(['*a'] * 100)}]",
        "more than 100,000 values with",
    ),
    "itself": ("a: &a [*a]", "contains itself"),
    "lists": ("[" * 9000, "nested deeper than 32"),
    "mappings": ("{a: " * 2000, "nested deeper than 32"),
    "indented": ("\n".join(" " * k + f"k{k}:" for k in range(100)), "nested deeper than 32"),
    "levels by alias": (
        f"a: &a {'[' * 12}{']' * 12}\nb: &b {'[' * 12}*a{']' * 12}\nc: {'[' * 12}*b{']' * 12}",
        "nested deeper than 32",
    ),
    "values": ("[" + "1," * 100_000 + "]", "more than 100,000 values"),
    "length": ("#" * 2_000_000, "longer than"),
    "integer": ("bits: " + "9" * 5000, "line 1, bits: is a number of 5,000 characters"),
    "wide integer": ("bits: " + "9" * 40, "not a 64-bit integer"),
    "no digits": ("bits: 0x_", "not a 64-bit integer"),
    "float": (
        "rules: [{bits: 1.0e+400}]",
        r"line 1, rules\[0\]\.bits: is '1.0e\+400', not a finite",
    ),
    "nan": ("bits: .nan", "not a finite number"),
    "key twice": ("seed: 1\nseed: 2", "line 2: has the key 'seed' twice"),
    "key twice, deep": ("rules:\n- bits: 4\n  bits: 8", r"line 3, rules\[0\]: has the key 'bits'"),
    "no plain key": ("? [a]\n: 1", "as a key"),
    "date, tagged": ("a: !!timestamp 2001-99-99", "only plain values are allowed"),
    "binary": ("a: !!binary aGk=", "only plain values are allowed"),
    "set": ("!!set {a, b}", "only plain values are allowed"),
    "tag that lies": ("a: !!int four", "not of type int"),
    "surrogate": (r'a: "\uD800"', "not valid Unicode"),
    "no character": (r'a: "\UFFFFFFFF"', "not valid YAML"),
}


# Seconds at the bound itself; with a lower one in every run.
CASES = [
    pytest.param(name, marks=pytest.mark.slow) if name == "values" else name for name in HOSTILE
]


def test_more_values_than_the_bound_are_refused(monkeypatch):
    monkeypatch.setattr(yaml_text, "MAX_VALUES", 1000)
    with pytest.raises(ConfigError, match="more than 1,000 values"):
        read_yaml("[" + "1," * 1000 + "]")
    assert len(read_yaml("[" + "1," * 900 + "]")) == 900


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_plain_is_refused_at_once_and_says_where(name, tmp_path):
    text, told = HOSTILE[name]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with within(10):
        with pytest.raises(ConfigError, match=told) as error:
            read_yaml(text)
        with pytest.raises(ConfigError, match=r"recipe\.yaml'") as whole:
            fewbits.Recipe.from_file(path)
    assert len(str(error.value)) < 500
    assert len(str(whole.value)) < 1000


def test_aliases_merges_and_dates_are_read():
    text = "base: &b {bits: 4, per: channel}\nrules: [{<<: *b, bits: 2}, *b]\nday: 2001-01-01"
    base = {"bits": 4, "per": "channel"}
    rules = [{"bits": 2, "per": "channel"}, base]
    assert read_yaml(text) == {"base": base, "rules": rules, "day": "2001-01-01"}
    assert read_yaml("") is None


def test_text_that_is_no_yaml_is_an_unreadable_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    for text in ("rules: [", "a: *nothing", "a\x00b", "--- 1\n--- 2", "%YAML 9.9\n---\na"):
        path.write_text(text)
        with pytest.raises((SourceError, ConfigError), match=r"recipe\.yaml'"):
            fewbits.Recipe.from_file(path)
