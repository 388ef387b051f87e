"""Bad input, each a clear error that names the culprit; and what compress promises besides."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

import fewbits
from fewbits.container import reader as lazy


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


DATA = [torch.randn(16, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]
GPFQ = fewbits.GPFQ(bits=4)


def test_the_persons_network_stays_as_it_is():
    net = _net().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    fewbits.compress(net, GPFQ, calibration=DATA)
    assert net.training
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not net[0]._forward_pre_hooks


def test_same_seed_same_bytes_and_another_seed_other_rows():
    stochastic = fewbits.GPFQ(bits=2, rounding="stochastic")
    first = fewbits.compress(_net(), stochastic, calibration=DATA, seed=1).data
    assert fewbits.compress(_net(), stochastic, calibration=DATA, seed=1).data == first
    assert fewbits.compress(_net(), stochastic, calibration=DATA, seed=2).data != first


def test_the_memory_bound_changes_nothing_but_the_work():
    free = fewbits.compress(_net(), GPFQ, calibration=DATA)
    bound = fewbits.compress(_net(), GPFQ, calibration=DATA, max_live_bytes=0)
    assert bound.data == free.data
    assert not free.notes
    assert any("1 of 3 batches" in note and "repeated" in note for note in bound.notes)


def test_non_finite_weights():
    net = _net()
    with torch.no_grad():
        net[2].weight[0, 0] = float("inf")
    with pytest.raises(fewbits.ModelError, match=r"'2\.weight' contains 1 NaN or infinite"):
        fewbits.compress(net, GPFQ, calibration=DATA)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "'gpfq' needs calibration data"),
        ([], "calibration data is empty"),
        ([torch.zeros(4, 7)], r"(?s)batch 0.*shape.*forward="),
        ([DATA[0], torch.zeros(4, 7)], r"(?s)batch 1"),
        ([torch.full((2, 6), float("nan"))], "batch 0 contains NaN"),
        ("words", "Got str"),
    ],
)
def test_calibration_data_that_cannot_be_used(calibration, message):
    threads = threading.active_count()
    with pytest.raises(fewbits.CalibrationError, match=message):
        fewbits.compress(_net(), GPFQ, calibration=calibration)
    assert threading.active_count() == threads


def test_patterns_that_match_nothing():
    recipe = fewbits.Recipe(rules=(fewbits.Rule("*", GPFQ), fewbits.Rule("Conv2d", None)))
    with pytest.raises(fewbits.TargetError, match="'Conv2d' matches no weight"):
        fewbits.compress(_net(), recipe, calibration=DATA)
    with pytest.raises(fewbits.TargetError, match="no weight that can be coded"):
        fewbits.compress(nn.ReLU(), GPFQ, calibration=DATA)


@pytest.mark.parametrize("bits", [0, 1, 9, 4.5, "4", None, True])
def test_bits_out_of_range(bits):
    with pytest.raises(fewbits.ConfigError, match="bits must be"):
        fewbits.GPFQ(bits=bits)


def test_a_forward_that_raises_names_batch_and_layer_and_leaves_no_thread():
    class Raising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _net()

        def forward(self, x):
            if x[0, 0] > 90:
                raise KeyError("unlucky")
            return self.inner(x)

    bad, threads = DATA[1].clone(), threading.active_count()
    bad[0, 0] = 99
    with pytest.raises(fewbits.CalibrationError, match=r"(?s)batch 1.*KeyError.*unlucky"):
        fewbits.compress(Raising(), GPFQ, calibration=[DATA[0], bad])
    assert threading.active_count() == threads


def test_not_a_module_and_not_copyable():
    with pytest.raises(fewbits.ConfigError, match="model must be a torch"):
        fewbits.compress({"weight": torch.zeros(2, 2)}, GPFQ)
    net = _net()
    net.lock = threading.Lock()
    with pytest.raises(fewbits.ModelError, match="cannot be copied"):
        fewbits.compress(net, GPFQ, calibration=DATA)


def test_a_file_for_another_architecture(tmp_path):
    path = tmp_path / "net.fewbits"
    fewbits.compress(_net(), GPFQ, calibration=DATA).save(path)
    other = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4), nn.Linear(4, 4))
    before = other[0].weight.clone()
    with pytest.raises(fewbits.ModelError, match=r"(?s)missing from the file.*0\.weight \(file"):
        fewbits.load(path, into=other)
    assert torch.equal(other[0].weight, before)


def test_saving_is_atomic(tmp_path):
    coded = fewbits.compress(_net(), GPFQ, calibration=DATA)
    with pytest.raises(OSError, match="nowhere"):
        coded.save(tmp_path / "nowhere" / "net.fewbits")
    assert list(tmp_path.iterdir()) == []


def test_unreached_layers_fall_back_and_say_so():
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x):
            return self.used(x)

    coded = fewbits.compress(Part(), GPFQ, calibration=DATA)
    entry = next(e for e in coded.plan.entries if e.target.name == "unused.weight")
    assert entry.method.name == "nearest"
    assert "no calibration batch calls" in entry.reason


def test_bias_correction_reaches_a_bias_or_the_absorbed_normalization():
    method = fewbits.GPFQ(bits=2, bias_correction=True)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    bare = fewbits.GPFQ(bits=2, bias_correction=False)
    plain = fewbits.compress(net, bare, calibration=DATA).state_dict()
    corrected = fewbits.compress(net, method, calibration=DATA)
    assert not torch.equal(corrected.state_dict()["1.bias"], plain["1.bias"])
    assert not torch.equal(corrected.state_dict()["2.bias"], plain["2.bias"])
    without = fewbits.compress(nn.Linear(6, 3, bias=False), method, calibration=DATA)
    assert "bias not corrected" in str(without.plan)


def test_half_precision_only_where_values_survive():
    net = _net()
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([1e6, 1, 2, 3, 4, 5, 6, 7]))
    method = fewbits.GPFQ(bits=4, bias_correction=False)  # 2.bias would repay errors of 1e6
    recipe = fewbits.Recipe(rules=(fewbits.Rule("*", method),), raw_dtype="float16")
    coded = fewbits.compress(net, recipe, calibration=DATA)
    assert coded.tensors["0.bias"].stored == "float32"
    assert coded.tensors["2.bias"].stored == "float16"
    assert coded.state_dict()["2.bias"].dtype == torch.float32


def test_tied_weights_are_restored_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(12, 6), nn.Linear(6, 12, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.embed(x))

    torch.manual_seed(0)
    coded = fewbits.compress(Tied(), GPFQ, calibration=[torch.arange(12)])
    assert list(coded.tensors) == ["embed.weight"]
    coded.save(tmp_path / "net.fewbits")
    state = fewbits.load(tmp_path / "net.fewbits")
    assert state["head.weight"] is state["embed.weight"]
    net = fewbits.load(tmp_path / "net.fewbits", into=Tied())
    assert net.head.weight is net.embed.weight
    assert torch.equal(net.head.weight, state["embed.weight"])


def test_dict_batches_and_a_forward_of_ones_own():
    class Keyed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = _net()

        def forward(self, *, pixels):
            return self.inner(pixels)

    direct = fewbits.compress(_net(), GPFQ, calibration=DATA)
    keyed = fewbits.compress(Keyed(), GPFQ, calibration=[{"pixels": x, "labels": 1} for x in DATA])
    own = fewbits.compress(Keyed(), GPFQ, calibration=DATA, forward=lambda net, x: net(pixels=x))
    for name, tensor in direct.state_dict().items():
        assert torch.equal(keyed.state_dict()[f"inner.{name}"], tensor)
        assert torch.equal(own.state_dict()[f"inner.{name}"], tensor)


def test_effort_changes_the_bytes_and_nothing_else(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 4)).eval()
    with torch.no_grad():
        net[0].weight *= torch.exp(torch.randn(64))
    coded = fewbits.compress(net, fewbits.Nearest(bits=4, per="tensor"))
    sizes = [coded.save(tmp_path / effort, effort) for effort in ("fast", "balanced", "smallest")]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[1]
    assert coded.save(tmp_path / "default") == sizes[1] == len(coded.data)
    for effort, size in zip(("fast", "balanced", "smallest"), sizes, strict=True):
        assert coded.size_report(effort).file_bytes == size
        found = fewbits.load(tmp_path / effort)
        assert all(torch.equal(found[k], v) for k, v in coded.state_dict().items())
    with pytest.raises(fewbits.ConfigError, match=r"effort must be one of fast.*'most'"):
        coded.save(tmp_path / "x", "most")


def test_recipe_and_source_can_be_left_out_of_the_file(tmp_path):
    whole = fewbits.compress(_net(), GPFQ, DATA, source="nets:build")
    bare = fewbits.compress(_net(), GPFQ, DATA, source="nets:build", metadata=False)
    assert set(whole.contents.metadata) == {"recipe", "source"}
    assert len(bare.data) < len(whole.data) - 30
    assert bare.data == whole.without_metadata().data
    bare.save(tmp_path / "net.fewbits")
    assert fewbits.inspect(tmp_path / "net.fewbits").metadata == {}
    found = fewbits.load(tmp_path / "net.fewbits")
    assert all(torch.equal(found[name], values) for name, values in whole.state_dict().items())


def test_one_tensor_of_a_file(tmp_path):
    path = tmp_path / "net.fewbits"
    fewbits.compress(_net(), GPFQ, calibration=DATA).save(path)
    state = fewbits.load(path)
    for name, values in state.items():
        got = fewbits.load_tensor(path, name)
        assert got.dtype == values.dtype
        assert torch.equal(got, values)
    with pytest.raises(fewbits.ConfigError, match="no tensor 'nowhere'"):
        fewbits.load_tensor(path, "nowhere")


def test_a_tensor_that_cannot_be_decoded_leaves_the_network_unchanged(tmp_path, monkeypatch):
    path = tmp_path / "net.fewbits"
    fewbits.compress(_net(), GPFQ, calibration=DATA).save(path)
    net = _net()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.fill_(7)
    last = list(net.state_dict())[-1]
    build = lazy.build_tensor

    def fail(name, *rest):
        if name == last:
            raise fewbits.CorruptFileError("crafted")
        return build(name, *rest)

    monkeypatch.setattr(lazy, "build_tensor", fail)
    with pytest.raises(fewbits.CorruptFileError, match="crafted"):
        fewbits.load(path, into=net)
    assert all(bool((tensor == 7).all()) for tensor in net.state_dict().values())


def test_a_network_that_loads_in_its_own_way_is_asked_to(tmp_path):
    class Shifted(nn.Linear):
        def _load_from_state_dict(self, state, prefix, *rest):
            super()._load_from_state_dict(state, prefix, *rest)
            self.loaded = True

    path = tmp_path / "net.fewbits"
    fewbits.compress(nn.Linear(6, 4), fewbits.Nearest(bits=4)).save(path)
    net = Shifted(6, 4)
    fewbits.load(path, into=net)
    assert net.loaded
    assert torch.equal(net.weight, fewbits.load(path)["weight"])


@pytest.mark.parametrize("name", ["gpfq", "rdoq", "transform"])
def test_compressing_inside_inference_mode_is_as_outside(name):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), torch.randn(64, 12)
    method = fewbits.METHODS[name]()
    outside = fewbits.compress(net, method, calibration=[x]).state_dict()
    with torch.inference_mode():
        inside = fewbits.compress(net, method, calibration=[x]).state_dict()
    assert all(torch.equal(inside[key], value) for key, value in outside.items())


def test_a_network_made_in_inference_mode_compresses_and_does_not_train():
    with torch.inference_mode():
        net, x = nn.Sequential(nn.Linear(12, 4)).eval(), torch.randn(64, 12)
    assert fewbits.compress(net, fewbits.RDOQ(), calibration=[x]).plan.entries
    assert fewbits.sensitivity(net, "gpfq", [x], bits=(4,))
    made_inside = r"'0.weight' was created in torch.inference_mode"
    with pytest.raises(fewbits.FewbitsError, match=made_inside):
        fewbits.prepare(net, fewbits.HEMP(levels=9))
