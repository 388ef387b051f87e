"""Names of places, there and back."""

from __future__ import annotations

import pytest

from fewbits.coded import ActivationSite, site_name
from fewbits.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a.b", ActivationSite("a.b")),
        ("a.b@3", ActivationSite("a.b", 3)),
        ("a:out", ActivationSite("a", None, True)),
        ("a:out@12", ActivationSite("a", 12, True)),
        ("a@x", ActivationSite("a@x")),
    ],
)
def test_names_of_places(name, place):
    assert ActivationSite.of(name) == place
    if place.call is not None or not name.endswith("@x"):
        calls = 1 if place.call is None else 99
        assert site_name(place.module, place.call or 0, calls, output=place.output) == name


def test_a_module_with_such_a_name_is_meant_by_it():
    assert ActivationSite.of("a@3", {"a@3"}) == ActivationSite("a@3")
    assert ActivationSite.of("a:out", {"a:out"}) == ActivationSite("a:out")


def test_a_name_that_a_module_has_is_given_to_no_call():
    modules = {"a", "a@1", "a@01", "b:out"}
    for call in range(3):
        name = site_name("a", call, 3, modules=modules)
        assert name not in modules
        assert ActivationSite.of(name, modules) == ActivationSite("a", call)
    assert site_name("a", 1, 3, modules=modules) == "a@001"
    assert site_name("a", 2, 3, modules=modules) == "a@2"
    assert ActivationSite.of("a@1", modules) == ActivationSite("a@1")
    assert ActivationSite.of("a@1@0", modules) == ActivationSite("a@1", 0)
    assert ActivationSite.of("b:out@2", modules) == ActivationSite("b:out", 2)


def test_an_output_without_a_name_of_its_own_is_refused():
    assert site_name("a", 0, 1, output=True, modules={"a"}) == "a:out"
    with pytest.raises(ConfigError, match="Rename"):
        site_name("a", 0, 1, output=True, modules={"a", "a:out"})
    with pytest.raises(ConfigError, match="Rename"):
        site_name("a", 1, 2, output=True, modules={"a", "a:out"})
