"""Every setting of every method is explained once, in its docstring."""

from dataclasses import dataclass, fields

import pytest

from fewbits.methods import METHODS
from fewbits.methods.setting_docs import setting_docs


@dataclass
class Base:
    """A base.

    Attributes:
        first, second: two at once,
            over two lines, see :class:`~fewbits.methods.Nearest`.
        third: of the base.
    """

    first: int = 0
    second: int = 0
    third: int = 0


@dataclass
class Derived(Base):
    """Derived.

    Attributes:
        second: its own.
        third: also of the derived.
    """


def test_meanings_are_inherited_replaced_and_added_to():
    found = setting_docs(Derived)
    assert found["first"] == "two at once, over two lines, see ``Nearest``."
    assert found["second"] == "its own."
    assert found["third"] == "of the base; also of the derived."


@pytest.mark.parametrize("name", list(METHODS))
def test_every_setting_has_a_meaning(name):
    found = setting_docs(METHODS[name])
    missing = [field.name for field in fields(METHODS[name]) if not found.get(field.name)]
    assert missing == []
