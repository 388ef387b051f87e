from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from fewbits.engine.targets import check_finite, matches, survey, unmatched
from fewbits.errors import ModelError, TargetError


class Zoo(nn.Module):
    """Tied weights, a shared module, attention, recurrence, a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.shared = nn.Linear(8, 8)
        self.again = self.shared
        self.attention = nn.MultiheadAttention(8, 2)
        self.rnn = nn.GRU(8, 8)
        self.scale = nn.Parameter(torch.ones(8, 8))
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight


def test_every_tensor_is_accounted_for():
    found = survey(Zoo())
    names = [t.name for t in found.targets] + list(found.others) + list(found.aliases)
    assert sorted(names) == sorted(Zoo().state_dict())
    assert len(names) == len(set(names))


def test_reasons():
    others = survey(Zoo()).others
    assert others["scale"] == "no layer kind takes Zoo"
    assert others["stem.bias"] == "biases are kept"
    assert others["norm.running_mean"] == "it is a buffer of BatchNorm2d"
    assert others["norm.weight"] == "a vector of BatchNorm2d is kept"
    assert others["norm.num_batches_tracked"] == "int64 values are kept exactly"


def test_tied_weights_are_coded_once_at_first_use():
    found = survey(Zoo())
    by_name = {target.name: target for target in found.targets}
    assert "head.weight" not in by_name
    assert by_name["embed.weight"].also == ("head.weight",)
    assert found.aliases["head.weight"] == "embed.weight"
    assert found.aliases["again.weight"] == "shared.weight"
    assert found.aliases["again.bias"] == "shared.bias"


def test_attention_covers_its_output_projection_once():
    names = [t.name for t in survey(Zoo()).targets]
    assert names.count("attention.out_proj.weight") == 1
    target = next(t for t in survey(Zoo()).targets if t.name == "attention.out_proj.weight")
    assert target.module == "attention"


def test_parametrized_weights_are_left_with_a_reason():
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    found = survey(net)
    assert [t.name for t in found.targets] == ["1.weight"]
    assert "parametrization" in found.others["0.parametrizations.weight.original1"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("stem", {"stem.weight"}),
        ("Conv2d", {"stem.weight"}),
        ("rnn.weight_ih*", {"rnn.weight_ih_l0"}),
        ("re:(stem|shared)", {"stem.weight", "shared.weight"}),
        ("*.weight", {"stem.weight", "shared.weight", "embed.weight", "attention.out_proj.weight"}),
        ("nothing", set()),
    ],
)
def test_patterns(pattern, expected):
    assert {t.name for t in survey(Zoo()).targets if matches(pattern, t)} == expected


def test_an_unmatched_pattern_names_the_nearest_layers():
    targets = survey(Zoo()).targets
    assert "'shared'" in str(unmatched("shaerd", targets))
    assert "'Conv2d'" in str(unmatched("conv2d", targets))
    assert "Layers of this network: embed" in str(unmatched("???", targets))
    with pytest.raises(TargetError, match="no regular expression"):
        matches("re:(", targets[0])


def test_non_finite_weights_are_named():
    net = Zoo()
    check_finite(net)
    with torch.no_grad():
        net.stem.weight[1, 2, 0, 1] = float("nan")
    with pytest.raises(ModelError, match=r"'stem.weight' holds 1 NaN.*\(1, 2, 0, 1\)"):
        check_finite(net)


def test_lazy_and_meta_tensors_are_refused():
    with pytest.raises(ModelError, match="no values yet"):
        survey(nn.Sequential(nn.Linear(3, 3, device="meta")))
    with pytest.raises(ModelError, match="no values yet"):
        survey(nn.Sequential(nn.LazyLinear(3)))


def test_extra_state_is_refused():
    class Odd(nn.Linear):
        def get_extra_state(self):
            return {"a": 1}

    with pytest.raises(ModelError, match="_extra_state"):
        survey(Odd(3, 3))
