"""Names of ours and of installed packages: found late, imported later, and never in silence."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import fewbits
from fewbits.errors import ConfigError, FewbitsWarning, require
from fewbits.registry import Registry
from packages import install

GROUP = "fewbits.colours"
CODE = """
import sys
sys.modules.setdefault("colour_imports", []).append(__name__)

class Colour:
    def __init__(self, name):
        self.name = name

blue, green, black = Colour("blue"), Colour("green"), Colour("noir")
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A folder on the path; what is imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "colour_imports", [])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def colours():
    found = Registry("colour", GROUP)
    found.register("red")("#f00")
    return found


def imported():
    return sys.modules["colour_imports"]


def declare(path, points, *, name="more-colours", module="more_colours", code=CODE):
    install(path, name, {f"{module}.py": code}, {GROUP: points})


def test_code_registers_and_unregisters(colours):
    with pytest.raises(ConfigError, match="the colour 'red' is registered twice"):
        colours.register("red")("#e00")
    assert colours.unregister("red") == "#f00"
    assert "red" not in colours
    assert list(colours) == colours.values() == []
    with pytest.raises(ConfigError, match="unknown colour 'red'"):
        colours.unregister("red")


def test_packages_come_after_what_code_registers_each_group_its_own(path, colours):
    declare(path, {"green": "more_colours:green", "blue": "more_colours:blue"})
    assert list(colours) == ["red", "blue", "green"]
    assert len(colours) == 3
    assert [getattr(value, "name", value) for value in colours.values()] == [
        "#f00",
        "blue",
        "green",
    ]
    assert list(Registry("colour")) == list(Registry("colour", "fewbits.flavours")) == []


def test_nothing_is_imported_before_it_is_asked_for(path, colours):
    declare(path, {"blue": "more_colours:blue"})
    assert colours["red"] == "#f00"
    assert "blue" in colours
    assert colours.ready() == ["#f00"]
    assert "blue" in str(colours.unknown("bleu"))
    assert "Did you mean 'blue'" in str(colours.unknown("bleu"))
    assert imported() == []
    assert colours["blue"].name == "blue"
    assert colours["blue"] is colours["blue"] is colours.ready()[1]
    assert imported() == ["more_colours"]


def test_an_import_of_fewbits_looks_for_no_package():
    code = (
        "import sys; before = set(sys.modules); import fewbits, fewbits.registry; "
        "assert 'importlib.metadata' not in set(sys.modules) - before"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(fewbits.__file__).parents[1])}
    subprocess.run([sys.executable, "-S", "-c", code], check=True, env=environment)


BROKEN = {
    "no module": ("teal = no_such_module:teal", "ModuleNotFoundError"),
    "no name": ("teal = more_colours:teal", "AttributeError"),
    "exits": ("teal = leaving:teal", "SystemExit"),
    "its own name": ("teal = more_colours:blue", "calls itself 'blue'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_used_is_an_error_only_where_it_is_asked_for(path, colours, case):
    line, why = BROKEN[case]
    (path / "leaving.py").write_text("raise SystemExit(3)")
    declare(path, {"teal": line.partition(" = ")[2], "green": "more_colours:green"})
    assert colours["green"].name == "green"
    for _ in range(2):
        with pytest.raises(ConfigError, match=rf"'more-colours'.*'{line}'.*{why}") as told:
            colours["teal"]
        assert GROUP in str(told.value)
    assert "teal" in colours


def test_all_are_listed_without_what_cannot_be_used_and_one_warning_tells_of_it(path, colours):
    declare(path, {"teal": "no_such_module:teal", "green": "more_colours:green"})
    with pytest.warns(FewbitsWarning, match=r"'teal'.*'more-colours'.*left out") as heard:
        assert list(colours) == ["red", "green"]
    assert len(heard) == 1
    assert heard[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(colours) == ["red", "green"]


def test_a_name_of_ours_is_not_taken(path, colours):
    declare(path, {"red": "more_colours:blue"})
    with pytest.raises(ConfigError, match=r"'red' of the package 'more-colours'.*builtins") as told:
        colours["red"]
    assert "Rename or uninstall" in str(told.value)
    assert imported() == []
    with pytest.warns(FewbitsWarning, match="'red' of the package 'more-colours'"):
        assert colours.items() == [("red", "#f00")]


def test_two_packages_with_one_name_are_both_named(path, colours):
    declare(path, {"blue": "more_colours:blue"})
    declare(path, {"blue": "others:blue"}, name="other-colours", module="others")
    with pytest.raises(ConfigError, match=r"'more-colours', 'other-colours'\. Uninstall"):
        colours["blue"]
    assert imported() == []


def test_a_module_may_register_what_its_package_declares(path, monkeypatch):
    colours = Registry("colour", GROUP)
    monkeypatch.setitem(sys.modules, "the_colours", colours)
    code = (
        f"{CODE}import sys\nsys.modules['the_colours'].register('blue')(blue)\n"
        "sys.modules['the_colours'].register('green')(black)\n"
    )
    declare(path, {"blue": "more_colours:blue", "green": "more_colours:green"}, code=code)
    assert colours["blue"].name == "blue"
    with pytest.raises(ConfigError, match=r"'green' of the package 'more-colours'.*another"):
        colours["green"]


def test_a_check_refuses_entries_of_code_and_of_packages(path):
    def short(name, colour):
        require(len(name) < 5, "the name", "short", name)

    colours = Registry("colour", GROUP, short)
    declare(path, {"blue": "more_colours:blue", "green": "more_colours:green"})
    with pytest.raises(ConfigError, match=r"^the name must be short"):
        colours.register("purple")("#808")
    assert colours["blue"].name == "blue"
    with pytest.raises(ConfigError, match=r"'more-colours'.*cannot be used: the name must"):
        colours["green"]
