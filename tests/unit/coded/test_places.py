"""Names of places, there and back."""

from __future__ import annotations

import pytest

from fewbits.coded import Place, site_name


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a.b", Place("a.b")),
        ("a.b@3", Place("a.b", 3)),
        ("a:out", Place("a", None, True)),
        ("a:out@12", Place("a", 12, True)),
        ("a@x", Place("a@x")),
    ],
)
def test_names_of_places(name, place):
    assert Place.of(name) == place
    if place.call is not None or not name.endswith("@x"):
        calls = 1 if place.call is None else 99
        assert site_name(place.module, place.call or 0, calls, output=place.output) == name


def test_a_module_with_such_a_name_is_meant_by_it():
    assert Place.of("a@3", {"a@3"}) == Place("a@3")
    assert Place.of("a:out", {"a:out"}) == Place("a:out")
