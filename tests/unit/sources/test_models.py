"""Networks by name, checkpoints loaded strictly, and errors that say what to do."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fewbits
from fewbits.errors import MissingExtraError, SourceError
from fewbits.sources import load_data, load_model
from fewbits.sources.builtin import BUILTIN
from fewbits.sources.demo_network import train_classifier

SHAPES = {"digits": (2, 1, 8, 8), "lenet": (2, 1, 28, 28), "cifar": (2, 3, 32, 32)}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)
        self.b = nn.Linear(3, 3)
        self.b.weight = self.a.weight


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a module into the current directory; it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(text, name="persons_net"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(text)

    yield write
    for name in ("persons_net", "persons_other"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", BUILTIN)
def test_builtin_networks_run_and_are_the_same_every_time(name):
    state = torch.random.get_rng_state()
    first, again = load_model(f"builtin:{name}"), load_model(f"builtin:{name}")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not first.module.training
    assert first.source == f"builtin:{name}"
    inputs = torch.ones(SHAPES[name.partition("-")[0]])
    assert first.module(inputs).shape == (2, 10)
    assert torch.equal(first.module(inputs), again.module(inputs))


def test_published_sizes():
    counts = {
        name: sum(p.numel() for p in load_model(f"builtin:{name}").module.parameters())
        for name in ("lenet-300-100", "lenet-5", "cifar-resnet20", "cifar-resnet32")
    }
    assert list(counts.values()) == [266_610, 431_080, 269_722, 464_154]


# module:callable


def test_own_network_from_the_current_directory(own):
    own("from torch import nn\nbuild = lambda: nn.Linear(2, 3)\nmade = nn.Linear(4, 1)\n")
    assert load_model("persons_net:build").module.out_features == 3
    assert load_model("persons_net:made").module.in_features == 4


@pytest.mark.parametrize(
    ("text", "source", "message"),
    [
        ("", "persons_net:build", "persons_net has no 'build'"),
        ("def builder(): ...", "persons_net:build", "Did you mean 'builder'"),
        ("def build(): return 3", "persons_net:build", "returned int; expected torch.nn.Module"),
        ("build = 3", "persons_net:build", "is a int; expected a function"),
        ("def build(width): ...", "persons_net:build", "without arguments.*width"),
        ("def build():\n  raise KeyError('x')", "persons_net:build", r"KeyError: 'x' \(.*line 2\)"),
        ("import nowhere_at_all", "persons_net:build", r"failed: ModuleNotFoundError.*line 1"),
        ("1 / 0", "persons_net:build", "importing 'persons_net' failed: ZeroDivisionError"),
        ("def (", "persons_net:build", "failed: SyntaxError"),
        ("", "persons_other:build", "no module 'persons_other'"),
        ("", "timn:resnet18", "Did you mean 'timm'"),
        ("", "module:persons_net", "expected 'module:callable'"),
        ("", "modul:persons_net", r"Did you mean 'module'\?"),
        ("", "builtin:digit-cnn", "Did you mean 'digits-cnn'"),
        ("", "builtin:", "Write it as 'builtin:digits-cnn'"),
        ("", "builtin:digits-cnn?x=1", "None exist"),
        ("", "bultin:digits-cnn", "Did you mean 'builtin'"),
        ("", "resnet", "Known schemes: builtin, timm, torchvision, transformers"),
    ],
)
def test_sources_that_do_not_work(own, text, source, message):
    own(text)
    with pytest.raises(SourceError, match=message):
        load_model(source)


# checkpoints


@pytest.mark.parametrize("form", ["safetensors", "pt", "wrapped", "parallel", "compiled"])
def test_checkpoints_in_the_usual_forms(tmp_path, form):
    trained = BUILTIN["digits-cnn"]()
    nn.init.constant_(trained[0].weight, 0.25)
    state = trained.state_dict()
    path = tmp_path / ("net.safetensors" if form == "safetensors" else "net.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "wrapped":
        torch.save({"epoch": 3, "state_dict": state}, path)
    else:
        prefix = {"parallel": "module.", "compiled": "module._orig_mod."}.get(form, "")
        torch.save({prefix + name: tensor for name, tensor in state.items()}, path)
    loaded = load_model("builtin:digits-cnn", path)
    assert loaded.weights == str(path)
    for name, tensor in loaded.module.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_a_checkpoint_must_fit(tmp_path):
    state = BUILTIN["digits-mlp"]().state_dict()
    state["1.bias"] = torch.zeros(7)
    state["extra"] = state.pop("3.weight")
    save_file(state, tmp_path / "n.safetensors")
    before = load_model("builtin:digits-mlp").module.state_dict()
    with pytest.raises(SourceError) as caught:
        load_model("builtin:digits-mlp", tmp_path / "n.safetensors")
    for part in (
        "1 missing (3.weight)",
        "1 unexpected (extra)",
        "1.bias (7,), expected (128,)",
        "Sequential (6 tensors)",
    ):
        assert part in str(caught.value)
    assert torch.equal(before["1.weight"], load_model("builtin:digits-mlp").module[1].weight)


def test_counters_and_tied_names_may_be_absent(tmp_path, own):
    state = BUILTIN["digits-cnn"]().state_dict()
    kept = {name: v for name, v in state.items() if not name.endswith("num_batches_tracked")}
    save_file(kept, tmp_path / "n.safetensors")
    load_model("builtin:digits-cnn", tmp_path / "n.safetensors")
    own(
        "from torch import nn\n"
        "class Tied(nn.Module):\n"
        "  def __init__(self):\n"
        "    super().__init__()\n"
        "    self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)\n"
        "    self.b.weight = self.a.weight\n"
    )
    save_file({"a.weight": torch.ones(3, 3), "a.bias": torch.ones(3)}, tmp_path / "t.safetensors")
    assert load_model("persons_net:Tied", tmp_path / "t.safetensors").module.b.weight.sum() == 9


def test_half_precision_of_a_checkpoint_is_kept_and_told(tmp_path):
    state = {
        name: v.half() for name, v in load_model("builtin:digits-mlp").module.state_dict().items()
    }
    save_file(state, tmp_path / "n.safetensors")
    loaded = load_model("builtin:digits-mlp", tmp_path / "n.safetensors")
    assert loaded.dtype == "float16"
    assert f"{len(state)} tensors of the network are float16, as in" in loaded.note
    for name, tensor in loaded.module.state_dict().items():
        assert torch.equal(tensor, state[name])
        assert tensor.dtype == torch.float16
    cast = load_model("builtin:digits-mlp", tmp_path / "n.safetensors", keep_dtype=False)
    assert (cast.dtype, cast.note) == ("float32", "")


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("n.safetensors", b"\xffnonsense", "not a valid safetensors file"),
        ("n.safetensors", b"nonsense", "a text file that begins with .nonsense"),
        ("n.pt", b"nonsense", "n.pt: "),
        ("n.pt", b"", "n.pt: "),
        ("n.onnx", b"", "unknown checkpoint type '.onnx'"),
        ("n.pt", [1, 2], "contains a list"),
        ("n.pt", {}, "contains a dict"),
        ("n.pt", {"w": torch.ones(1), "epoch": 3}, r"entries are not tensors: epoch \(int\)"),
        ("n.pt", {"w": Evil()}, "code is never unpickled"),
    ],
)
def test_damaged_or_foreign_checkpoints(tmp_path, capsys, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(SourceError, match=message):
        load_model("builtin:digits-mlp", path)
    assert "unpickled" not in capsys.readouterr().out


def test_an_absent_checkpoint():
    with pytest.raises(SourceError, match="do not exist"):
        load_model("builtin:digits-mlp", "nowhere.pt")


# libraries that may be absent


@pytest.mark.parametrize(
    ("source", "package", "extra"),
    [
        ("transformers:bert", "transformers", "hf"),
        ("timm:resnet18", "timm", "vision"),
        ("torchvision:resnet18", "torchvision.models", "vision"),
    ],
)
def test_a_missing_library_names_its_extra(monkeypatch, source, package, extra):
    monkeypatch.setitem(sys.modules, package.partition(".")[0], None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"fewbits\[{extra}\]"):
        load_model(source)


def test_a_library_that_lacks_one_of_its_own_parts_is_another_error(own, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    own("import nowhere_at_all")
    from fewbits.sources.base.spec import optional_import

    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all") as caught:
        optional_import("persons_net", "hf", "this")
    assert not isinstance(caught.value, MissingExtraError)


def test_timm(monkeypatch):
    asked = []

    def create_model(name, **settings):
        asked.append((name, settings))
        return nn.Linear(2, 2)

    fake = SimpleNamespace(
        create_model=create_model,
        is_model=lambda name: name == "resnet18",
        list_models=lambda: ["resnet18"],
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    load_model("timm:resnet18.tv_in1k?classes=3")
    load_model("timm:resnet18", pretrained=False)
    assert asked == [
        ("resnet18.tv_in1k", {"pretrained": True, "num_classes": 3}),
        ("resnet18", {"pretrained": False}),
    ]
    with pytest.raises(SourceError, match="Did you mean 'resnet18'"):
        load_model("timm:resnet8")


def test_transformers(monkeypatch, tmp_path):
    calls = []

    class Net(nn.Linear):
        @classmethod
        def from_pretrained(cls, name):
            calls.append(("pretrained", name))
            return cls(1, 1)

        @classmethod
        def from_config(cls, config):
            calls.append(("random", config.name))
            return cls(1, 1)

    class Auto:
        @staticmethod
        def from_pretrained(name):
            if name == "nowhere":
                raise OSError("no such model")
            return SimpleNamespace(name=name, architectures=["Net"])

    fake = SimpleNamespace(AutoConfig=Auto, Net=Net, AutoModel=Net, AutoModelForX=Net)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    load_model("transformers:bert")
    load_model("transformers:bert?class=AutoModelForX&weights=random")
    load_model("transformers:bert", pretrained=False)
    load_model("transformers:config.json?weights=random")
    assert calls == [
        ("pretrained", "bert"),
        ("random", "bert"),
        ("random", "bert"),
        ("random", "config.json"),
    ]
    with pytest.raises(SourceError, match=r"Add \?weights=random"):
        load_model("transformers:config.json")
    with pytest.raises(SourceError, match="Did you mean 'AutoModelForX'"):
        load_model("transformers:bert?class=AutoModelForY")
    with pytest.raises(SourceError, match="no such model"):
        load_model("transformers:nowhere")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A Hugging Face model's folder, and a library that builds such models."""

    class Net(nn.Linear):
        @classmethod
        def from_pretrained(cls, name):
            net = cls(2, 3)
            state = {k: v for k, v in load_file(f"{name}/model.safetensors").items() if k != "old"}
            net.load_state_dict(state)
            return net

        @classmethod
        def from_config(cls, config):
            return cls(2, 3)

    config = SimpleNamespace(from_pretrained=lambda name: SimpleNamespace(architectures=["Net"]))
    fake = SimpleNamespace(AutoConfig=config, Net=Net, AutoModel=Net)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "net"
    home.mkdir()
    (home / "config.json").write_text("{}")
    save_file(nn.Linear(2, 3).state_dict(), home / "model.safetensors")
    return home


@pytest.mark.parametrize("source", ["net", "./net", "transformers:./net", "transformers:net"])
def test_the_folder_of_a_model_is_a_source(folder, source):
    whole = load_model(source)
    assert whole.source == "transformers:./net"
    assert torch.equal(whole.module.weight, load_file(folder / "model.safetensors")["weight"])
    empty = load_model(source, on_disk=True)
    assert empty.source == whole.source
    assert empty.on_disk == Path("net")
    assert empty.module.weight.is_meta
    coded = [
        fewbits.compress(net.module, "nearest", weights=net.on_disk).encode()
        for net in (whole, empty)
    ]
    assert coded[0] == coded[1]


def test_a_folder_that_does_not_fit_is_loaded_and_a_note_says_why(folder):
    state = {**nn.Linear(2, 3).state_dict(), "old": torch.zeros(1)}
    save_file(state, folder / "model.safetensors")
    network = load_model("./net", on_disk=True)
    assert network.on_disk is None
    assert not network.module.weight.is_meta
    assert "1 unexpected (old)" in network.note


def test_a_folder_with_a_damaged_file(folder):
    (folder / "model.safetensors").write_bytes(b"cut short")
    for on_disk in (False, True):
        with pytest.raises(SourceError, match=r"transformers failed.*header"):
            load_model("./net", on_disk=on_disk)


def test_other_folders_are_no_models(folder):
    (folder / "config.json").unlink()
    with pytest.raises(SourceError, match=r"no config\.json.*module:callable --weights"):
        load_model("./net")
    for path in ("./nett", r"C:\\nett", "C:/nett"):
        with pytest.raises(SourceError, match="no such folder"):
            load_model(path)
    with pytest.raises(SourceError, match="or the folder of a Hugging Face model"):
        load_model("nett")  # may be a mistyped folder


def test_training_learns_repeats_itself_and_leaves_the_random_state():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        state = torch.random.get_rng_state()
        data = load_data("digits")
        nets = [
            train_classifier(load_model("builtin:digits-mlp").module, data, epochs=3)
            for _ in range(2)
        ]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not nets[0].training
    assert torch.equal(nets[0][1].weight, nets[1][1].weight)
    inputs, labels = next(iter(data.batches("test", 449)))
    assert (nets[0](inputs).argmax(1) == labels).float().mean() > 0.8
