"""Checkpoints that stay on disk: a network over mapped files."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fewbits
from fewbits.engine.paged.paging import Pager
from fewbits.errors import SourceError
from fewbits.sources.checkpoints.mapped import attach, map_checkpoint


class Net(nn.Module):
    """A tied embedding, batch normalization, a recurrent layer, and a table of positions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.norm = nn.Embedding(7, 6), nn.BatchNorm1d(6)
        self.lstm, self.head = nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 7)
        self.head.weight = self.table.weight
        self.register_buffer("positions", torch.arange(4.0)[:, None], persistent=False)

    def forward(self, x):
        x = self.table(x) + self.positions[: x.shape[1]]
        return self.head(self.lstm(self.norm(x.mT).mT)[0])


def trained() -> Net:
    net = Net().eval()
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in (*net.parameters(), net.norm.running_mean):
            value.copy_(torch.randn(value.shape, generator=g))
    return net


STATE = trained().state_dict()
FULL = {name: tensor.clone() for name, tensor in STATE.items()}
TIED = {name: tensor for name, tensor in FULL.items() if name != "head.weight"}
X = torch.randint(7, (2, 4), generator=torch.Generator().manual_seed(0))


def empty() -> Net:
    with fewbits.empty_weights():
        return Net().eval()


def attached(path, net=None):
    net = empty() if net is None else net
    attach(net, map_checkpoint(path), Pager())
    return net


def index_of(shards, folder, name="model.safetensors.index.json"):
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    names = {key: file for file, tensors in shards.items() for key in tensors}
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return folder / name


def halves(tensors):
    names = list(tensors)
    return {
        f"model-0000{1 + part}-of-00002.safetensors": {n: tensors[n] for n in names[part::2]}
        for part in (0, 1)
    }


def check(net):
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, STATE[name]), name
    with torch.no_grad():
        assert torch.equal(net(X), trained()(X))


@pytest.mark.parametrize("tensors", [FULL, TIED], ids=["all names", "tied once"])
def test_a_file_an_index_and_a_folder(tensors, tmp_path):
    save_file(tensors, tmp_path / "a.safetensors")
    check(attached(tmp_path / "a.safetensors"))
    check(attached(str(tmp_path / "a.safetensors"), Net().eval()))  # its own weights are replaced
    folder = tmp_path / "model"
    folder.mkdir()
    check(attached(index_of(halves(tensors), folder)))
    (folder / "config.json").write_text("{}")
    check(attached(folder))


def test_tied_parameters_stay_one_object(tmp_path):
    save_file(TIED, tmp_path / "a.safetensors")
    net = attached(tmp_path / "a.safetensors")
    assert net.head.weight is net.table.weight
    assert all(weight is not None and not weight.is_meta for weight in net.lstm._flat_weights)
    assert net.lstm._flat_weights[0] is net.lstm.weight_ih_l0


def test_either_of_tied_names_may_be_absent(tmp_path):
    other = {name: tensor for name, tensor in FULL.items() if name != "table.weight"}
    save_file(other, tmp_path / "a.safetensors")
    check(attached(tmp_path / "a.safetensors"))


class ByMemory(nn.Module):
    """Two parameters and a buffer over one memory."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.b.weight = nn.Parameter(self.a.weight.data)
        self.register_buffer("seen", self.a.weight.data, persistent=False)


def test_tied_names_with_different_values_are_refused(tmp_path):
    save_file({**FULL, "head.weight": FULL["head.weight"] + 1}, tmp_path / "a.safetensors")
    network = empty()
    with pytest.raises(SourceError, match=r"'table\.weight' and 'head\.weight' are one parameter"):
        attach(network, map_checkpoint(tmp_path / "a.safetensors"), Pager())
    assert network.table.weight.is_meta


def test_what_is_tied_by_memory_stays_tied(tmp_path):
    save_file({"a.weight": torch.ones(4, 4)}, tmp_path / "a.safetensors")
    net = attached(tmp_path / "a.safetensors", ByMemory())
    assert bool((net.a.weight == 1).all())
    assert bool((net.seen == 1).all())
    assert net.a.weight.data_ptr() == net.b.weight.data_ptr() == net.seen.data_ptr()


def test_a_module_under_two_names(tmp_path):
    layer = nn.Linear(3, 3)
    net = nn.Sequential(layer, nn.ReLU(), layer)
    save_file({"0.weight": torch.ones(3, 3), "0.bias": torch.ones(3)}, tmp_path / "a.safetensors")
    attached(tmp_path / "a.safetensors", net)
    assert net[0] is net[2]
    assert bool((net[0].weight == 1).all())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_prefixes_of_wrappers(prefix, tmp_path):
    named = {prefix + name: tensor for name, tensor in FULL.items()}
    save_file({**named, "n_averaged": torch.tensor(3)}, tmp_path / "a.safetensors")
    check(attached(tmp_path / "a.safetensors"))


def test_counters_may_be_absent(tmp_path):
    fewer = {name: tensor for name, tensor in FULL.items() if "num_batches" not in name}
    save_file(fewer, tmp_path / "a.safetensors")
    net = attached(tmp_path / "a.safetensors")
    assert net.norm.num_batches_tracked == 0


def test_parameters_get_the_dtypes_of_the_checkpoint_and_keep_requires_grad(tmp_path):
    half = {n: t.half() if t.is_floating_point() else t for n, t in FULL.items()}
    save_file(half, tmp_path / "a.safetensors")
    net = empty().requires_grad_(False)
    net.head.bias.requires_grad_(True)
    attached(tmp_path / "a.safetensors", net)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float16}
    assert torch.equal(net.head.bias, half["head.bias"])
    assert net.norm.running_mean.dtype == torch.float32
    assert [name for name, p in net.named_parameters() if p.requires_grad] == ["head.bias"]


def test_weights_are_mapped_and_buffers_are_not(tmp_path):
    save_file(FULL, tmp_path / "a.safetensors")
    os.chmod(tmp_path / "a.safetensors", 0o444)  # noqa: PTH101
    before = (tmp_path / "a.safetensors").read_bytes()
    checkpoint = map_checkpoint(tmp_path / "a.safetensors")
    net = empty()
    attach(net, checkpoint, Pager())
    assert net.table.weight.data_ptr() == checkpoint.tensors["table.weight"].data_ptr()
    running = checkpoint.tensors["norm.running_mean"]
    assert net.norm.running_mean.data_ptr() != running.data_ptr()
    net.table.weight.data.zero_()
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_other_dtypes(tmp_path):
    tensors = {
        str(dtype): torch.ones(3).to(dtype)
        for dtype in (torch.bfloat16, torch.float8_e5m2, torch.uint16, torch.complex64, torch.bool)
    }
    save_file(tensors, tmp_path / "a.safetensors")
    found = map_checkpoint(tmp_path / "a.safetensors").tensors
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].to(torch.complex64), tensor.to(torch.complex64))


def _pickle(folder):
    torch.save(FULL, folder / "a.pt")
    return folder / "a.pt"


def _pickled_shards(folder):
    torch.save(FULL, folder / "pytorch_model-00001-of-00001.bin")
    index = {"weight_map": dict.fromkeys(FULL, "pytorch_model-00001-of-00001.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def _missing_shard(folder):
    index = index_of(halves(FULL), folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    return index


def _other_index(folder):
    index = index_of(halves(FULL), folder)
    save_file({"other": torch.ones(2)}, folder / "model-00002-of-00002.safetensors")
    return index


def _truncated(folder):
    save_file(FULL, folder / "a.safetensors")
    data = (folder / "a.safetensors").read_bytes()
    (folder / "a.safetensors").write_bytes(data[:-100])
    return folder / "a.safetensors"


def _blank(folder):
    (folder / "a.safetensors").write_bytes(b"")
    return folder / "a.safetensors"


def _saved(**changes):
    def make(folder):
        tensors = {name: tensor for name, tensor in FULL.items() if name != changes.get("without")}
        save_file({**tensors, **changes.get("more", {})}, folder / "a.safetensors")
        return folder / "a.safetensors"

    return make


ERRORS = {
    "pickle": (_pickle, "only safetensors files"),
    "pickled shards": (_pickled_shards, "only safetensors files"),
    "no file": (lambda folder: folder / "none.safetensors", "do not exist"),
    "empty folder": (lambda folder: folder, "a"),
    "missing shard": (_missing_shard, "1 of 2 shards are missing"),
    "index of another": (_other_index, "belong to different checkpoints"),
    "truncated": (_truncated, "not a valid safetensors file"),
    "blank": (_blank, "not a valid safetensors file"),
    "missing": (_saved(without="head.bias"), r"1 missing \(.*head.bias"),
    "unexpected": (_saved(more={"extra": torch.ones(2)}), r"1 unexpected \(.*extra"),
    "misshapen": (_saved(more={"head.bias": torch.ones(8)}), r"head.bias \(8,\), expected \(7,\)"),
    "integers": (
        _saved(more={"head.bias": torch.ones(7, dtype=torch.int8)}),
        "head.bias torch.int8, expected torch.float32",
    ),
}


@pytest.mark.parametrize(("make", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_errors_say_what_is_wrong_and_leave_the_network_as_it_was(make, message, tmp_path):
    path, net = make(tmp_path), Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    objects = {name: id(parameter) for name, parameter in net.named_parameters()}
    with pytest.raises(SourceError, match=message):
        attach(net, map_checkpoint(path), Pager())
    assert objects == {name: id(parameter) for name, parameter in net.named_parameters()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_buffers_without_values_are_an_error_that_says_how_to_build_the_network(tmp_path):
    save_file(FULL, tmp_path / "a.safetensors")
    with torch.device("meta"):
        net = Net()
    with pytest.raises(SourceError, match=r"1 buffers.*positions.*empty_weights"):
        attach(net, map_checkpoint(tmp_path / "a.safetensors"), Pager())
    assert net.head.bias.is_meta


def test_buffers_without_values_that_are_in_the_checkpoint(tmp_path):
    save_file(FULL, tmp_path / "a.safetensors")
    with torch.device("meta"):
        net = Net().eval()
    net.positions = torch.arange(4.0)[:, None]
    check(attached(tmp_path / "a.safetensors", net))


def test_a_network_whose_state_dict_has_other_names(tmp_path):
    def rename(module, state, prefix, _):
        state[f"{prefix}w"] = state.pop(f"{prefix}weight")

    net = nn.Linear(3, 3)
    net._register_state_dict_hook(rename)
    save_file({"w": torch.ones(3, 3), "bias": torch.ones(3)}, tmp_path / "a.safetensors")
    with pytest.raises(SourceError, match=r"1 parameters.*other names.*weight"):
        attached(tmp_path / "a.safetensors", net)
