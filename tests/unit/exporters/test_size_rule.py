"""A file that is larger than what it came from is not written, and nothing is left of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import fewbits
from cli_runs import run, run_json
from fewbits.errors import ConfigError
from fewbits.exporters import EXPORTERS, Exported, export
from fewbits.sources import load_model


@dataclass(frozen=True, kw_only=True)
class Blob:
    """So many zeros, in a file or in a folder of two files."""

    name: ClassVar[str] = "blob"
    summary: ClassVar[str] = "zeros"
    suffix: ClassVar[str] = ".bin"
    extra: ClassVar[str] = ""
    runs: ClassVar[str] = "nothing"
    needs: ClassVar[str] = "nothing"
    keeps_codes: ClassVar[bool] = False

    count: int = 10
    fails: bool = False

    def export(self, contents, path, model, inputs):
        if self.suffix:
            path.write_bytes(bytes(self.count))
        else:
            path.mkdir()
            (path / "a").write_bytes(bytes(self.count))
        if self.fails:
            raise OSError(28, "No space left on device", str(path))
        return Exported(path, self.count, notes=("zeros",))


@pytest.fixture
def coded(monkeypatch):
    monkeypatch.setitem(EXPORTERS._entries, "blob", Blob)
    folder = type("Folder", (Blob,), {"name": "folder", "suffix": ""})
    monkeypatch.setitem(EXPORTERS._entries, "folder", folder)
    return fewbits.compress(nn.Linear(200, 100), fewbits.Nearest(bits=4))


FLOATS = 4 * (200 * 100 + 100)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("to", ["blob", "folder"])
def test_a_larger_file_is_not_written(to, coded, tmp_path):
    path = tmp_path / ("net.bin" if to == "blob" else "net")
    told = rf"has 200,000 bytes, and .* float32 have {FLOATS:,}: nothing was written. No weight"
    with pytest.raises(ConfigError, match=told):
        export(coded, path, to=to, count=200_000)
    assert names(tmp_path) == []
    made = export(coded, path, to=to, count=200_000, larger=True)
    assert made.path == path
    assert names(tmp_path) == [path.name]
    assert any(note.startswith("the file is larger than the network's") for note in made.notes)
    # Names and nodes of a graph may take that much.
    near = tmp_path / f"near{path.suffix}"
    assert any("larger" in n for n in export(coded, near, to=to, count=FLOATS + 60_000).notes)
    small = export(coded, tmp_path / f"small{path.suffix}", to=to)
    assert small.notes == ("zeros",)


def test_an_older_file_stays(coded, tmp_path):
    path = tmp_path / "net.bin"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="nothing was written"):
        export(coded, path, count=200_000)
    with pytest.raises(OSError, match="No space left") as told:
        export(coded, path, fails=True)
    assert told.value.filename == str(path)
    assert path.read_bytes() == b"old"
    export(coded, path)
    assert path.read_bytes() == bytes(10)
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(tmp_path) == ["net.bin"]


def test_a_file_beside_the_entropy_coded_one(coded, tmp_path):
    size = coded.save(tmp_path / "net.fewbits")
    told = export(tmp_path / "net.fewbits", tmp_path / "a.bin", count=2 * size)
    assert told.notes == ("zeros",)
    told = export(tmp_path / "net.fewbits", tmp_path / "a.bin", count=3 * size)
    assert any("3.0 times as large as net.fewbits" in note for note in told.notes)


def test_a_float_graph_is_larger(tmp_path):
    pytest.importorskip("onnxscript")
    net = nn.Sequential(nn.Linear(64, 400), nn.ReLU(), nn.Linear(400, 300))
    x = torch.randn(8, 64)
    raw = fewbits.compress(net, fewbits.Recipe((fewbits.Rule("*", None),)))
    floats = sum(4 * p.numel() for p in net.parameters())
    told = export(raw, tmp_path / "net.onnx", model=net, inputs=x)
    assert told.bytes > floats
    assert any("larger than the network's weights" in note for note in told.notes)


def test_the_command_line_and_check(coded, tmp_path):
    source, file, out = "builtin:digits-mlp", tmp_path / "a.fewbits", tmp_path / "net.bin"
    fewbits.compress(load_model(source).module, fewbits.Nearest(), source=source).save(file)
    large = ("--set", "count=500000")
    told = run_json("export", file, "-o", out, *large, code=1)["error"]["message"]
    assert "nothing was written" in told
    assert "--larger" in told
    assert not out.exists()
    run("export", file, "-o", out, *large, "--larger")
    assert out.stat().st_size == 500_000
    told = run_json("export", file, "-o", tmp_path / "b.bin", "--check", code=1)["error"]["message"]
    assert "files of the exporter 'blob' cannot be checked" in told
    assert not (tmp_path / "b.bin").exists()
