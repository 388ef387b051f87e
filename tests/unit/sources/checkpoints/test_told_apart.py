"""Folders and names of a hub: told apart, and nothing is fetched because a file said so."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
from torch import nn
from typer.testing import CliRunner

import fewbits
from fewbits.cli.app import app
from fewbits.cli.jobs.stored import stored_source
from fewbits.coded import Contents
from fewbits.container import encode
from fewbits.errors import SourceError
from fewbits.sources import load_model
from fewbits.sources.base.spec import as_path, is_path, parse


@pytest.fixture
def library(monkeypatch):
    """Stand in for transformers: tells what it was asked, and whether it was free to fetch."""
    asked = []
    constants = ModuleType("huggingface_hub.constants")
    constants.HF_HUB_OFFLINE = False

    class Net(nn.Linear):
        @classmethod
        def from_pretrained(cls, name, **here):
            return cls(2, 2)

        @classmethod
        def from_config(cls, config):
            return cls(2, 2)

    class AutoConfig:
        @staticmethod
        def from_pretrained(name, local_files_only=False):
            asked.append((name, local_files_only, constants.HF_HUB_OFFLINE))
            return SimpleNamespace(architectures=["Net"])

    fake = SimpleNamespace(AutoConfig=AutoConfig, Net=Net, AutoModel=Net)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    monkeypatch.setitem(sys.modules, "huggingface_hub", ModuleType("huggingface_hub"))
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    return SimpleNamespace(asked=asked, constants=constants)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("./vit", True),
        ("../vit", True),
        ("/models/vit", True),
        ("~/vit", True),
        (".", True),
        ("C:\\models\\vit", True),
        (".\\vit", True),
        ("out/models/vit", True),
        ("vit", False),
        ("google/vit", False),
        (".hidden", False),
        ("bert-base.v1", False),
    ],
)
def test_what_is_written_as_a_path(target, expected):
    assert is_path(target) == expected


def test_a_folder_is_stored_as_a_path(library, tmp_path, monkeypatch):
    (tmp_path / "vit").mkdir()
    (tmp_path / "org" / "net").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert load_model("transformers:vit").source == "transformers:./vit"
    loaded = load_model("transformers:org/net?class=Net", pretrained=False)
    assert loaded.source == "transformers:./org/net?class=Net"
    assert load_model(f"transformers:{tmp_path}/vit").source == f"transformers:{tmp_path}/vit"
    assert load_model("transformers:google/vit").source == "transformers:google/vit"
    names = [name for name, _, _ in library.asked]
    assert names == ["./vit", "./org/net", f"{tmp_path}/vit", "google/vit"]
    assert as_path(parse("transformers:")).target == ""


def test_a_path_that_is_not_there_is_no_name_of_a_hub(library, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for target in ("./vit", "../x/vit", "a/b/vit", "~/no-such-folder-of-mine"):
        for fetch in (True, False):
            with pytest.raises(SourceError, match="does not exist"):
                load_model(f"transformers:{target}", fetch=fetch)
    assert library.asked == []


def test_a_hub_is_asked_where_the_caller_names_it_and_not_else(library):
    load_model("transformers:google/vit", pretrained=False)
    load_model("transformers:google/vit", pretrained=False, fetch=False)
    assert library.asked == [("google/vit", False, False), ("google/vit", True, True)]
    assert library.constants.HF_HUB_OFFLINE is False


def stored(tmp_path, source):
    file = tmp_path / "net.fewbits"
    coded = fewbits.compress(nn.Linear(2, 2), fewbits.Nearest(bits=4), source=source)
    coded.save(file)
    return file


@pytest.mark.parametrize("verb", ["evaluate", "export", "inspect"])
def test_no_verb_fetches_what_a_file_names(verb, library, tmp_path):
    file = stored(tmp_path, "transformers:google/vit")
    arguments = {
        "evaluate": [],
        "export": ["-o", str(tmp_path / "net.onnx")],
        "inspect": ["--energy"],
    }[verb]
    runner = CliRunner()
    words = [verb, str(file), "--data", "digits", *arguments]
    runner.invoke(app, words)  # such data does not fit the network
    assert library.asked == [("google/vit", True, True)]
    runner.invoke(app, [*words, "--model", "transformers:google/vit"])
    assert library.asked[1:] == [("google/vit", False, False)]


def test_an_error_says_how_to_consent(library, tmp_path, monkeypatch):
    def refuse(name, local_files_only=False):
        raise OSError(f"{name} is not in the cache")

    monkeypatch.setattr(sys.modules["transformers"].AutoConfig, "from_pretrained", refuse)
    with pytest.raises(
        SourceError, match=r"downloads nothing just because a file names it.*--model"
    ):
        load_model("transformers:google/vit", pretrained=False, fetch=False)
    assert library.constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize("target", ["//server/share/vit", "\\\\server\\share\\vit"])
def test_a_file_names_no_folder_of_another_machine(target, tmp_path):
    file = tmp_path / "net.fewbits"
    file.write_bytes(encode(Contents({}, metadata={"source": f"transformers:{target}"})))
    with pytest.raises(SourceError, match="on another machine"):
        stored_source(file, "digits")


def test_timm_fetches_no_configuration_of_a_hub_either(library, monkeypatch):
    seen = []

    def create_model(name, **settings):
        seen.append((name, settings["pretrained"], library.constants.HF_HUB_OFFLINE))
        return nn.Linear(2, 2)

    fake = SimpleNamespace(create_model=create_model, is_model=bool, list_models=list)
    monkeypatch.setitem(sys.modules, "timm", fake)
    load_model("timm:hf-hub:org/net", fetch=False)
    load_model("timm:hf-hub:org/net")
    assert seen == [("hf-hub:org/net", False, True), ("hf-hub:org/net", True, False)]


@pytest.mark.parametrize(("fetch", "pretrained"), [(False, True), (True, False)])
def test_torchvision_fetches_no_backbone(fetch, pretrained, monkeypatch):
    seen = []

    def fcn(*, weights=None, weights_backbone="DEFAULT"):
        seen.append((weights, weights_backbone))
        return nn.Linear(2, 2)

    def resnet(*, weights=None):
        seen.append((weights, None))
        return nn.Linear(2, 2)

    known = {"fcn": fcn, "resnet": resnet}
    models = ModuleType("torchvision.models")
    models.list_models = lambda: list(known)
    models.get_model_builder = known.__getitem__
    models.get_model = lambda name, **settings: known[name](**settings)
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    for name in known:
        load_model(f"torchvision:{name}", pretrained=pretrained, fetch=fetch)
    assert seen == [(None, None), (None, None)]


def test_python_stores_a_folder_as_a_path_too(tmp_path, monkeypatch):
    (tmp_path / "vit").mkdir()
    monkeypatch.chdir(tmp_path)
    for given, kept in (
        ("transformers:vit", "transformers:./vit"),
        ("transformers:google/vit", "transformers:google/vit"),
        ("nets:build", "nets:build"),
    ):
        coded = fewbits.compress(nn.Linear(2, 2), fewbits.Nearest(), source=given)
        assert coded.contents.metadata["source"] == kept
        tuned = fewbits.prepare(nn.Linear(2, 2), fewbits.HEMP(), source=given).finish()
        assert tuned.contents.metadata["source"] == kept
