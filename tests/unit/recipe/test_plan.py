"""What rules mean: names first, patterns only where no weight or layer has that name."""

from __future__ import annotations

import pytest
from torch import nn

from fewbits import Nearest, Recipe, Rule, plan
from fewbits.engine.layers.targets import survey
from fewbits.errors import TargetError
from fewbits.recipe.plan import selected, unmatched


class Zoo(nn.Module):
    """Tied weights, a shared module, attention, recurrence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.stem = nn.Conv2d(3, 8, 3)
        self.shared = nn.Linear(8, 8)
        self.again = self.shared
        self.attention = nn.MultiheadAttention(8, 2)
        self.rnn = nn.GRU(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight


def meant(pattern, network):
    return {target.name for target in selected(pattern, survey(network).targets)}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("stem", {"stem.weight"}),
        ("Conv2d", {"stem.weight"}),
        ("rnn.weight_ih*", {"rnn.weight_ih_l0"}),
        ("re:(stem|shared)", {"stem.weight", "shared.weight"}),
        ("*.weight", {"stem.weight", "shared.weight", "embed.weight", "attention.out_proj.weight"}),
        ("again", {"shared.weight"}),
        ("head", {"embed.weight"}),
        ("nothing", set()),
    ],
)
def test_patterns(pattern, expected):
    assert meant(pattern, Zoo()) == expected


def test_an_unmatched_pattern_names_the_nearest_layers():
    targets = survey(Zoo()).targets
    assert "'shared'" in str(unmatched("shaerd", targets))
    assert "'Conv2d'" in str(unmatched("conv2d", targets))
    assert "Layers of this network: embed" in str(unmatched("???", targets))
    with pytest.raises(TargetError, match="not a valid regular expression"):
        selected("re:(", targets)


class Named(nn.Module):
    """Layers under the given names."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(4, 4) for name in names})


@pytest.mark.parametrize(
    ("names", "pattern", "expected"),
    [
        (("blk[0]", "blk0"), "layers.blk[0]", "blk[0]"),
        (("a*", "ab"), "layers.a*", "a*"),
        (("a?", "ab"), "layers.a?.weight", "a?"),
        (("[!x]", "y"), "layers.[!x]", "[!x]"),
        (("re:a", "a"), "layers.re:a", "re:a"),
    ],
)
def test_a_name_is_no_glob(names, pattern, expected):
    assert meant(pattern, Named(*names)) == {f"layers.{expected}.weight"}


def test_a_layer_that_has_the_name_of_a_class_or_begins_like_an_expression_is_meant_by_it():
    network = nn.Sequential(nn.Linear(4, 4))
    network.add_module("Linear", nn.Linear(4, 4))
    network.add_module("re:0", nn.Linear(4, 4))
    assert meant("Linear", network) == {"Linear.weight"}
    assert meant("re:0", network) == {"re:0.weight"}
    assert meant("re:.*", network) == {"0.weight", "Linear.weight", "re:0.weight"}


def test_globs_still_mean_what_no_layer_is_called():
    network = Named("blk0", "blk1", "blk2")
    assert meant("layers.blk[01]", network) == {"layers.blk0.weight", "layers.blk1.weight"}


def test_the_last_rule_decides_by_names_as_by_patterns():
    rules = (Rule("*", Nearest(bits=8)), Rule("layers.x[1]", None))
    entries = plan(Named("x[1]", "x1"), Recipe(rules)).entries
    assert [entry.method is None for entry in entries] == [True, False]


def test_an_asterisk_is_all_even_where_a_layer_is_called_so():
    network = Named("a")
    network.add_module("*", nn.Linear(4, 4))
    assert meant("*", network) == {"layers.a.weight", "*.weight"}
    assert meant("[*]", network) == {"*.weight"}
