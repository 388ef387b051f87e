from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from fewbits.engine.layers.targets import check_finite, survey
from fewbits.errors import ModelError


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


def test_non_finite_weights_are_named():
    net = Zoo()
    check_finite(net)
    with torch.no_grad():
        net.stem.weight[1, 2, 0, 1] = float("nan")
    with pytest.raises(ModelError, match=r"'stem.weight' contains 1 NaN.*\(1, 2, 0, 1\)"):
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


def test_a_reason_is_true_of_names_that_end_like_those_of_weight_norm():
    attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    others = survey(attention).others
    assert others["bias_k"] == others["bias_v"] == "biases are kept"

    class Odd(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 4)
            self.gain_g = nn.Parameter(torch.ones(4))
            self.table_orig = nn.Parameter(torch.ones(4, 4))
            self.unbiased = nn.Parameter(torch.ones(4, 4))

    others = survey(Odd()).others
    assert others["gain_g"] == "a vector of Odd is kept"
    assert others["table_orig"] == "it is none of the matrices that Odd multiplies by"
    assert others["unbiased"] == others["table_orig"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_feeds_a_weight_is_told_in_every_style():
    old = nn.utils.weight_norm(nn.Linear(4, 4))
    pruned = prune.l1_unstructured(nn.Linear(4, 4), "weight", 4)
    spectral = nn.utils.spectral_norm(nn.Linear(4, 4))
    others = survey(nn.Sequential(old, pruned, spectral, nn.Linear(4, 4))).others
    for name in ("0.weight_g", "0.weight_v", "1.weight_orig", "1.weight_mask", "2.weight_orig"):
        assert "parametrization" in others[name]


def test_weights_that_are_buffers_or_of_other_dtypes_are_kept():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.complex64), nn.Linear(4, 4))
    weight = net[0].weight.detach()
    del net[0].weight
    net[0].register_buffer("weight", weight)
    found = survey(net)
    assert [target.name for target in found.targets] == ["2.weight"]
    assert found.others["0.weight"] == "it is a buffer of Linear"
    assert found.others["1.weight"] == "complex64 values are kept exactly"


def test_a_shared_module_has_one_place_and_tied_ones_have_two():
    by_name = {target.name: target for target in survey(Zoo()).targets}
    assert by_name["shared.weight"].homes == ("shared",)
    assert by_name["shared.weight"].places == ("shared.weight",)
    assert by_name["shared.weight"].also == ("again.weight",)
    assert by_name["embed.weight"].homes == ("embed", "head")
    assert by_name["embed.weight"].places == ("embed.weight", "head.weight")


def test_a_sparse_tensor_is_named_with_what_to_do():
    net = nn.Sequential(nn.Linear(4, 4))
    net.register_buffer("graph", torch.eye(4).to_sparse())
    with pytest.raises(ModelError, match=r"'graph' has the layout torch.sparse_coo.*to_dense"):
        survey(net)
    net.register_buffer("graph", torch.eye(4).to_sparse(), persistent=False)
    survey(net)


def test_a_network_of_one_flat_buffer_is_coded_slice_by_slice():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4))
    flat = torch.randn(24)
    net[0].weight = nn.Parameter(flat[:12].view(3, 4))
    net[1].weight = nn.Parameter(flat[12:].view(4, 3))
    found = survey(net)
    assert [t.name for t in found.targets] == ["0.weight", "1.weight"]
    assert not found.overlaps
    assert not found.aliases
    net.register_buffer("flat", flat)
    assert survey(net).overlaps["flat"] == ("0.weight", "1.weight")


def test_float8_and_complex_values_are_checked_too():
    net = nn.Sequential(nn.Linear(4, 4))
    net.register_buffer("eight", torch.tensor([1.0, float("nan")]).to(torch.float8_e5m2))
    with pytest.raises(ModelError, match="'eight' contains 1 NaN"):
        check_finite(net)
