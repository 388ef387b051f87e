"""Checkpoints as people have them: shards, training states, wrappers, objects, other dtypes."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from collections import defaultdict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fewbits.errors import SourceError
from fewbits.sources.checkpoints.checkpoint import load_weights


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).eval()


STATE = small().state_dict()


def emptied(network=None):
    """A network whose weights are those of no checkpoint."""
    network = small() if network is None else network
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(9)
    return network


def bare(name):
    return ".".join(p for p in name.split(".") if p not in ("module", "_orig_mod", "model"))


def check(network):
    found = {bare(name): tensor for name, tensor in network.state_dict().items()}
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in found)


def optimizer():
    network = small()
    made = torch.optim.Adam(network.parameters())
    network(torch.ones(2, 6)).sum().backward()
    made.step()
    return made.state_dict()


FORMS = {
    "counter": lambda: {"epoch": torch.tensor(3), "state_dict": STATE},
    "all": lambda: {
        "model": STATE,
        "optimizer": optimizer(),
        "scaler": {"scale": 65536.0, "growth": torch.tensor(2.0)},
        "rng": torch.get_rng_state(),
        "best": 0.5,
    },
    "average": lambda: {"step": torch.tensor(1), "ema": STATE},
    "inside": lambda: {"model": {"config": {"depth": 3}, "state_dict": STATE}},
    "settings": lambda: {"model": {"depth": 3}, "net": STATE},
    "unusual": lambda: {"backbone": STATE, "optimizer": optimizer()},
    "trainer": lambda: {"state_dict": {f"model.{n}": v for n, v in STATE.items()}, "epoch": 1},
    "wrappers": lambda: {f"module._orig_mod.model.{n}": v for n, v in STATE.items()},
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(small()).state_dict(),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_state_dict_is_found_among_the_states_of_a_training(tmp_path, form):
    torch.save(FORMS[form](), tmp_path / "net.pt")
    network = emptied()
    load_weights(network, tmp_path / "net.pt")
    check(network)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda net: torch.compile(net, backend="eager")])
def test_a_plain_checkpoint_fits_a_wrapped_network(tmp_path, wrap):
    save_file(STATE, tmp_path / "net.safetensors")
    network = wrap(emptied())
    load_weights(network, tmp_path / "net.safetensors")
    check(network)


def test_two_state_dicts_of_unusual_names_are_not_chosen_from(tmp_path):
    torch.save({"G": STATE, "D": STATE}, tmp_path / "net.pt")
    with pytest.raises(SourceError, match=r"2 state dicts, under 'G', 'D'.*\['G'\]"):
        load_weights(emptied(), tmp_path / "net.pt")


# objects


class Own(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda: {"args": argparse.Namespace(lr=1), "state_dict": STATE}, r"argparse\.Namespace"),
        (lambda: {"args": {"deep": [argparse.Namespace()]}, "model": STATE}, r"Namespace"),
        (small, r"torch\.nn\.modules\.container\.Sequential"),
        (lambda: Own(2, 2), r"test_checkpoints\.Own"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_objects_are_named_by_their_type_and_never_made(tmp_path, content, told, legacy):
    torch.save(content(), tmp_path / "n.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        SourceError, match=rf"object of type \S*{told}.*never unpickled.*torch.save"
    ):
        load_weights(emptied(), tmp_path / "n.pt")


def arrays(state=STATE):
    return {name: tensor.numpy() for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (arrays, r"numpy\.ndarray.*torch\.from_numpy"),
        (lambda: {"model": arrays(), "epoch": 3}, r"numpy\.ndarray.*from_numpy.*x\['model'\]"),
        (
            lambda: {"state_dict": STATE, "best": np.float64(0.5)},
            r"numpy\.number.*save\(x\['state_dict'\]",
        ),
        (lambda: {"epoch": 3, "net": STATE, "curve": np.ones(4)}, r"numpy\.ndarray.*x\['net'\]"),
        (lambda: {**STATE, "best": np.float32(1)}, r"numpy\.number.*torch\.is_tensor"),
        (lambda: {"model": STATE, "args": argparse.Namespace(lr=1)}, r"torch\.save\(x\['model'\]"),
        (
            lambda: {"args": argparse.Namespace(model="resnet", lr=1), "weights": STATE},
            r"torch\.save\(x\['weights'\], path\)",
        ),
        (lambda: defaultdict(list, STATE), r"collections\.defaultdict.*dict\(x\)"),
        (lambda: {"model": defaultdict(int, STATE)}, r"defaultdict.*dict\(x\['model'\]\)"),
        (small, r"Sequential.*x\.state_dict\(\)"),
        (lambda: {"model": small(), "epoch": 1}, r"Sequential.*x\['model'\]\.state_dict\(\)"),
        (lambda: {**STATE, "args": argparse.Namespace()}, r"Namespace.*torch\.is_tensor\(v\)"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_the_advice_on_objects_gives_a_file_that_loads(tmp_path, content, told, legacy):
    path = tmp_path / "n.pt"
    torch.save(content(), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(SourceError, match=told) as raised:
        load_weights(emptied(), path)
    ways = re.split(r", or (?=torch)|; or, if .* others, ", str(raised.value).split("then ")[1])
    for way in ways:
        code = (
            way.rstrip(".")
            .partition(" if x is ")[0]
            .partition(" if that is ")[0]
            .partition(" with the ")[0]
        )
        names = {"x": torch.load(path, weights_only=False), "torch": torch, "numpy": np}
        with contextlib.suppress(AttributeError, NameError):  # of a way for another kind
            exec(code, names | {"path": tmp_path / "again.pt"})
    network = emptied()
    load_weights(network, tmp_path / "again.pt")
    check(network)


@pytest.mark.parametrize("ending", ["pt", "safetensors", "bin"])
@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132\n",
            "Git LFS.*pull",
        ),
        ("<!DOCTYPE html>\n<title>Not found</title>", "a web page"),
        ("\n  <html><body>Sign in \u2013 please</body></html>" * 40, "a web page"),
        ("", "is empty"),
        ('{"error": "gated"}', r"a text file that begins with '\{\"error"),
    ],
)
def test_what_is_stored_in_place_of_a_checkpoint_is_told(tmp_path, ending, text, told):
    (tmp_path / f"n.{ending}").write_text(text, encoding="utf-8")
    with pytest.raises(SourceError, match=told):
        load_weights(emptied(), tmp_path / f"n.{ending}")


def test_an_index_that_is_a_pointer_is_told(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n"
    (tmp_path / "model.safetensors.index.json").write_text(pointer)
    with pytest.raises(SourceError, match="Git LFS"):
        load_weights(emptied(), tmp_path)


class Stateful(nn.Linear):
    """Has an extra state, which is no tensor."""

    def get_extra_state(self):
        return {"scale": 2}

    def set_extra_state(self, state):
        self.scale = state["scale"]


def test_extra_states_are_named_and_to_be_left_out(tmp_path):
    network = nn.Sequential(Stateful(6, 5))
    torch.save(network.state_dict(), tmp_path / "n.pt")
    with pytest.raises(SourceError, match=r"extra states of layers.*0._extra_state.*is_tensor"):
        load_weights(nn.Sequential(nn.Linear(6, 5)), tmp_path / "n.pt")
    torch.save(
        {k: v for k, v in network.state_dict().items() if torch.is_tensor(v)}, tmp_path / "n.pt"
    )
    load_weights(nn.Sequential(nn.Linear(6, 5)), tmp_path / "n.pt")


@pytest.mark.filterwarnings("ignore")
def test_scripts_are_not_run(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "n.pt")
    with pytest.raises(SourceError, match=r"TorchScript archive.*torch.jit.load"):
        load_weights(emptied(), tmp_path / "n.pt")


# shards


@pytest.fixture
def shards(tmp_path):
    """Return what writes two shards and their index, with changes to the index."""

    def write(changes=None, *, pickled=False, without=""):
        names, files = list(STATE), {}
        for place, part in enumerate((names[:3], names[3:])):
            file = f"part-{place}" + (".bin" if pickled else ".safetensors")
            tensors = {name: STATE[name] for name in part if name != without}
            if pickled:
                torch.save(tensors, tmp_path / file)
            else:
                save_file(tensors, tmp_path / file)
            files |= dict.fromkeys(part, file)
        index = tmp_path / f"net.{'bin' if pickled else 'safetensors'}.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": files | (changes or {})}))
        return index

    return write


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("folder", [False, True])
def test_shards_are_read_by_their_index_or_folder(shards, pickled, folder):
    index = shards(pickled=pickled)
    network = emptied()
    load_weights(network, index.parent if folder else index)
    check(network)


@pytest.mark.parametrize("pickled", [False, True])
def test_a_shard_alone_names_its_index(shards, pickled):
    index = shards(pickled=pickled)
    shard = index.with_name("part-1.bin" if pickled else "part-1.safetensors")
    with pytest.raises(SourceError, match=rf"missing.*one of 2 shards.*'{index.name}'"):
        load_weights(emptied(), shard)

    class Custom(type(small())):
        def _load_from_state_dict(self, *arguments):
            super()._load_from_state_dict(*arguments)

    with pytest.raises(
        SourceError, match=rf"(?s)its own way of loading.*one of 2 shards.*'{index.name}'"
    ):
        load_weights(Custom(*small()), shard)
    index.unlink()
    with pytest.raises(SourceError, match="Use the factory"):
        load_weights(emptied(), shard)
    with pytest.raises(SourceError, match=r"Judging by its name it is one of 2 shards.*download"):
        load_weights(emptied(), shard.rename(index.with_name(f"m-00002-of-00002{shard.suffix}")))


def test_a_whole_file_beside_an_index_of_others_is_no_shard(shards):
    index = shards()
    path = index.with_name("whole.safetensors")
    save_file({name: tensor for name, tensor in STATE.items() if name != "2.bias"}, path)
    with pytest.raises(SourceError, match=r"1 missing \(2.bias\). Use the factory"):
        load_weights(emptied(), path)


@pytest.mark.parametrize(
    ("changes", "without", "told"),
    [
        ({"2.bias": "part-7.safetensors"}, "", "1 of 3 shards are missing: part-7"),
        ({}, "2.bias", r"1 names are in no shard: 2.bias \(not in part-1"),
        ({"2.bias": "part-0.safetensors"}, "2.bias", r"2.bias \(not in part-0"),
        ({"2.bias": "../part.safetensors"}, "", "not a file next to the index"),
        ({"2.bias": "..\\part.safetensors"}, "", "not a file next to the index"),
        ({"2.bias": "/etc/part.safetensors"}, "", "not a file next to the index"),
        ({"2.bias": "C:\\part.safetensors"}, "", "not a file next to the index"),
        ({"2.bias": "a/../../part.bin"}, "", "not a file next to the index"),
        ({"2.bias": ""}, "", "not a file next to the index"),
        ({"2.bias": "a\0b"}, "", "not a file next to the index"),
        ({"2.bias": 3}, "", "not a file next to the index"),
    ],
)
def test_an_index_that_is_wrong_says_how(shards, changes, without, told):
    index = shards(changes, without=without)
    network = emptied()
    with pytest.raises(SourceError, match=told):
        load_weights(network, index)
    assert bool((network[0].weight == 9).all())


@pytest.mark.parametrize(
    "text", ["", "[1]", "{}", '{"weight_map": {}}', "[" * 100_000, '{"weight_map": []}']
)
def test_an_index_that_is_none(tmp_path, text):
    (tmp_path / "n.safetensors.index.json").write_text(text)
    with pytest.raises(SourceError, match="index"):
        load_weights(emptied(), tmp_path / "n.safetensors.index.json")


def test_folders_hold_one_checkpoint_or_say_what_they_hold(tmp_path, shards):
    with pytest.raises(SourceError, match="contains no checkpoint"):
        load_weights(emptied(), tmp_path)
    save_file(STATE, tmp_path / "a.safetensors")
    torch.save({}, tmp_path / "training_args.bin")
    network = emptied()
    load_weights(network, tmp_path)
    check(network)
    save_file(STATE, tmp_path / "b.safetensors")
    with pytest.raises(SourceError, match=r"2 checkpoints: a.safetensors, b.safetensors"):
        load_weights(emptied(), tmp_path)
    save_file(STATE, tmp_path / "model.safetensors")
    load_weights(emptied(), tmp_path)
    shards()
    load_weights(emptied(), tmp_path)


# values


def test_values_that_would_lose_more_than_precision_are_refused(tmp_path):
    torch.save({**STATE, "0.bias": STATE["0.bias"].to(torch.complex64)}, tmp_path / "n.pt")
    with pytest.raises(SourceError, match=r"an incompatible dtype \(0.bias torch.complex64"):
        load_weights(emptied(), tmp_path / "n.pt")
    torch.save({**STATE, "0.weight": STATE["0.weight"].to_sparse()}, tmp_path / "n.pt")
    with pytest.raises(SourceError, match=r"'0.weight' has the layout torch.sparse_coo"):
        load_weights(emptied(), tmp_path / "n.pt")


class Pair(nn.Module):
    """Two layers of one memory."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        weight = self.a.weight.data
        self.b.weight = nn.Parameter(weight.t() if transposed else weight)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_checkpoint_with_two_values_for_one_memory_is_refused(tmp_path, transposed):
    state = {
        name: torch.rand(tensor.shape) for name, tensor in Pair(transposed).state_dict().items()
    }
    save_file(state, tmp_path / "n.safetensors")
    network = emptied(Pair(transposed))
    with pytest.raises(SourceError, match=r"'a.weight' and 'b.weight' share memory"):
        load_weights(network, tmp_path / "n.safetensors")
    assert bool((network.a.weight == 9).all())
    state["b.weight"] = state["a.weight"].t() if transposed else state["a.weight"]
    torch.save(state, tmp_path / "n.pt")
    load_weights(network, tmp_path / "n.pt")
    assert torch.equal(network.b.weight, state["b.weight"])


class Versioned(nn.Linear):
    """Weights of version 1 are converted; and a table gets its size."""

    _version = 2

    def __init__(self, count: int = 0) -> None:
        super().__init__(4, 4)
        self.register_buffer("table", torch.arange(count))

    def _load_from_state_dict(self, state, prefix, metadata, *others):
        self.table = torch.zeros_like(state[prefix + "table"])
        if (metadata.get("version") or 1) < 2:
            state[prefix + "weight"] = state[prefix + "weight"] + 1
        super()._load_from_state_dict(state, prefix, metadata, *others)


def test_a_network_with_a_loader_of_its_own_uses_it(tmp_path):
    made = nn.Sequential(Versioned(5))
    torch.save({"state_dict": nn.DataParallel(made).state_dict(), "epoch": 1}, tmp_path / "n.pt")
    network = nn.Sequential(Versioned())
    load_weights(network, tmp_path / "n.pt")
    assert torch.equal(network[0].weight, made[0].weight)
    assert torch.equal(network[0].table, torch.arange(5))
    torch.save(small().state_dict(), tmp_path / "other.pt")
    with pytest.raises(SourceError, match=r"other.pt: Sequential has its own way of loading"):
        load_weights(network, tmp_path / "other.pt")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_integers_without_their_scales_are_no_weights(tmp_path, dtype, ending):
    state = {**STATE, "2.weight": (STATE["2.weight"] * 100).to(dtype)}
    path = tmp_path / f"n.{ending}"
    torch.save(state, path) if ending == "pt" else save_file(state, path)
    network = emptied()
    told = rf"2.weight {dtype}, expected torch.float32: integers without .*dequantize them first"
    with pytest.raises(SourceError, match=told):
        load_weights(network, path)
    assert bool((network[0].weight == 9).all())


def test_integers_for_buffers_of_floats_are_values(tmp_path):
    torch.save({**STATE, "1.running_mean": torch.arange(5)}, tmp_path / "n.pt")
    network = emptied()
    load_weights(network, tmp_path / "n.pt")
    assert network[1].running_mean.tolist() == [0, 1, 2, 3, 4]


def test_sparse_values_of_a_file_are_to_be_made_dense(tmp_path):
    torch.save({**STATE, "0.weight": STATE["0.weight"].to_sparse()}, tmp_path / "n.pt")
    with pytest.raises(SourceError, match=r"'0.weight'.*to_dense\(\)\.$"):
        load_weights(emptied(), tmp_path / "n.pt")


class Renaming(nn.Module):
    """Knows the names of an older version of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.new, self.head = nn.Linear(4, 4), nn.Linear(4, 4)
        self._register_load_state_dict_pre_hook(self.rename)

    def rename(self, state, prefix, *others):
        for name in [name for name in state if name.startswith(f"{prefix}old.")]:
            state[name.replace(f"{prefix}old.", f"{prefix}new.")] = state.pop(name)


@pytest.mark.parametrize("lead", ["", "module.", "_orig_mod.module.", "model."])
@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel])
def test_names_that_a_network_renames_lose_and_get_what_stands_before(tmp_path, lead, wrap):
    state = Renaming().state_dict()
    old = {lead + name.replace("new.", "old."): tensor for name, tensor in state.items()}
    torch.save(old, tmp_path / "n.pt")
    network = Renaming()
    load_weights(wrap(network), tmp_path / "n.pt")
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


class Twins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model, self.module = nn.Linear(4, 4), nn.Linear(4, 4)


@pytest.mark.parametrize("lead", ["", "module.", "_orig_mod.", "model.module."])
@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel])
def test_children_called_model_and_module_are_told_apart(tmp_path, lead, wrap):
    state = Twins().state_dict()
    save_file({lead + name: tensor for name, tensor in state.items()}, tmp_path / "n.safetensors")
    network = Twins()
    load_weights(wrap(network), tmp_path / "n.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("own", [False, True])
def test_a_network_built_in_inference_mode_is_filled(tmp_path, own):
    class Custom(nn.Sequential):
        def _load_from_state_dict(self, *arguments):
            super()._load_from_state_dict(*arguments)

    torch.save(STATE, tmp_path / "n.pt")
    with torch.inference_mode():
        network = emptied(Custom(*small()) if own else small())
    load_weights(network, tmp_path / "n.pt")
    check(network)
