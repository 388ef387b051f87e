"""Which exporter writes a file: by name, by suffix, and what is told where none or several do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import fewbits
from cli_runs import run, run_json
from fewbits.errors import ConfigError
from fewbits.exporters import EXPORTERS, Exported, export, exporter_for, exporter_name
from fewbits.sources import load_model

KNOWN = "compressed-tensors, gguf, names, onnx, onnx-nbits, safetensors, torchao."


@dataclass(frozen=True, kw_only=True)
class Names:
    """The names of the tensors, a line each."""

    name: ClassVar[str] = "names"
    summary: ClassVar[str] = "names"
    suffix: ClassVar[str] = ".txt"
    extra: ClassVar[str] = ""
    runs: ClassVar[str] = "eyes"
    needs: ClassVar[str] = "nothing"
    keeps_codes: ClassVar[bool] = False

    upper: bool = False

    def export(self, contents, path, model, inputs):
        text = "\n".join(contents.tensors)
        path.write_text(text.upper() if self.upper else text)
        return Exported(path, path.stat().st_size, notes=("names only",))


@pytest.fixture
def names(monkeypatch):
    monkeypatch.setitem(EXPORTERS._entries, "names", Names)


@pytest.fixture
def coded():
    return fewbits.compress(nn.Linear(3, 2), fewbits.Nearest())


def test_the_suffix_or_the_name_chooses(names, coded, tmp_path):
    path = tmp_path / "net.txt"
    assert exporter_name("net.onnx") == "onnx"
    assert export(coded, path) == export(coded, path, to="names")
    assert path.read_text() == "weight\nbias"
    export(coded, str(path), upper=True)
    assert path.read_text() == "WEIGHT\nBIAS"
    assert exporter_for("names", {"upper": True}) == Names(upper=True)


def test_no_exporter_or_several(names, monkeypatch, coded, tmp_path):
    found = (("safetensors", "safetensors"), ("pt", "torchao"), ("onnx", "onnx"), ("txt", "names"))
    known = ", ".join(rf".{suffix} \({name}\)" for suffix, name in (("gguf", "gguf"), *found))
    known = f"must end in {known}, or the exporter must be named"
    with pytest.raises(ConfigError, match=known):
        export(coded, tmp_path / "net.tape")
    with pytest.raises(ConfigError, match=f"unknown exporter 'tape'. Known: {KNOWN}"):
        export(coded, tmp_path / "net.tape", to="tape")
    monkeypatch.setitem(EXPORTERS._entries, "more", type("More", (Names,), {"name": "more"}))
    with pytest.raises(ConfigError, match="say which exporter writes it: names, more"):
        export(coded, tmp_path / "net.txt")
    with pytest.raises(ConfigError, match=r"no option 'uper'.*Did you mean 'upper'"):
        export(coded, tmp_path / "net.txt", to="names", uper=True)
    with pytest.raises(ConfigError, match="inputs must be a tensor or a tuple of tensors"):
        export(coded, tmp_path / "net.txt", to="names", inputs=[torch.ones(2, 3)])


def test_an_exporter_says_what_it_needs():
    with pytest.raises(ConfigError, match="needs of the exporter 'odd' must be one of 'nothing'"):
        EXPORTERS.register("odd")(type("Odd", (Names,), {"name": "odd", "needs": "luck"}))
    with pytest.raises(ConfigError, match="pass model="):
        EXPORTERS["onnx"]().export(None, None, None, (torch.ones(2, 3),))


def test_the_command_line_finds_it_too(names, tmp_path):
    source, file, out = "builtin:digits-mlp", tmp_path / "a.fewbits", tmp_path / "net.txt"
    fewbits.compress(load_model(source).module, fewbits.Nearest(), source=source).save(file)
    found = run_json("export", file, "-o", out)
    assert found["bytes"] == out.stat().st_size
    assert found["weights"] == {}
    shown = run("export", file, "-o", out, "--force", "--set", "upper=true").stdout
    assert shown == f"{out}: {out.stat().st_size} bytes\nnote: names only\n"
    assert "1.WEIGHT" in out.read_text()
    told = run_json("export", file, "-o", out, "--force", "--processor", "vnni", code=2)
    told = told["error"]["message"]
    assert "'names' has no option 'processor'. It has: upper." in told
    told = run_json("export", file, "--to", "tape", "-o", out, code=2)["error"]["message"]
    assert f"unknown exporter 'tape'. Known: {KNOWN}" in told
    told = run_json("export", file, "-o", tmp_path / "net.onnx", code=2)["error"]["message"]
    assert "add --data" in told
    twice = ("--processor", "any", "--set", "processor=any")
    told = run_json("export", file, "-o", tmp_path / "b.onnx", *twice, code=2)["error"]["message"]
    assert "given twice" in told
