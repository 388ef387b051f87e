"""What a folder holds, and the errors of those that are not right, without Hugging Face."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import yaml
from safetensors import safe_open
from torch import nn

import fewbits
from fewbits.hub.loading import from_pretrained


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, width)


@pytest.fixture
def coded():
    torch.manual_seed(0)
    return fewbits.compress(Net(160), "nearest")


@pytest.fixture
def folder(coded, tmp_path):
    coded.save_pretrained(tmp_path / "net", config={"width": 160})
    return tmp_path / "net"


def test_every_function_reads_the_file_in_the_folder(coded, folder, tmp_path):
    path = folder / "fewbits.safetensors"
    size = coded.save(tmp_path / "net.fewbits")
    data = path.read_bytes()
    assert data[144:] == (tmp_path / "net.fewbits").read_bytes()
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == ["fewbits"]
        assert file.metadata() == {"format": "pt"}
        assert file.get_tensor("fewbits").numpy().tobytes() == data[144:]
    assert fewbits.inspect(path).report.file_bytes == size
    wanted = coded.state_dict()
    for state in (fewbits.load(path), fewbits.CodedModel.load(path).state_dict()):
        assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    lazy = fewbits.load(path, into=Net(160), lazy=True)
    assert torch.equal(lazy.layer.weight + 0, wanted["layer.weight"])
    rows = fewbits.load_tensor(path, "layer.weight", (2, 5))
    assert torch.equal(rows, wanted["layer.weight"][2:5])


@pytest.mark.parametrize(
    "header",
    [
        b'{"fewbits": {"dtype": "I8", "shape": [SIZE], "data_offsets": [0, SIZE]}}',
        b'{"other": {"dtype": "U8", "shape": [SIZE], "data_offsets": [0, SIZE]}}',
        b'{"fewbits": {"dtype": "U8", "shape": [1, SIZE], "data_offsets": [0, SIZE]}}',
        b'{"fewbits": {"dtype": "U8", "shape": [SIZE], "data_offsets": [0, SIZE]}, "a": 1}',
        b'{"fewbits": ' + b"[" * 3000,
        b"{" + b" " * 5000,
        b"{}",
    ],
)
def test_other_safetensors_are_no_files_of_fewbits(folder, header):
    path = folder / "fewbits.safetensors"
    data = path.read_bytes()[144:]
    header = header.replace(b"SIZE", str(len(data)).encode())
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    with pytest.raises(fewbits.CorruptFileError, match="not a fewbits file"):
        fewbits.inspect(path)
    with pytest.raises(fewbits.CorruptFileError, match="not a fewbits file"):
        fewbits.CodedModel.load(path)


def test_truncated_and_changed_weights(folder):
    path = folder / "fewbits.safetensors"
    data = path.read_bytes()
    for broken in (data[:9], data[:100], data[:-1], data + b"\0"):
        path.write_bytes(broken)
        with pytest.raises(fewbits.CorruptFileError):
            fewbits.load(path)
    path.write_bytes(data)
    lazy = fewbits.load(path, into=Net(160), lazy=True)
    path.write_bytes(data[:-1])
    with pytest.raises(fewbits.CorruptFileError, match="was changed"):
        lazy.layer.weight + 0


def test_a_class_of_ones_own(coded, folder):
    wanted = coded.state_dict()
    for lazy in (False, True):
        network = from_pretrained(folder, Net, lazy=lazy)
        assert not network.training
        assert torch.equal(network.layer.weight + 0, wanted["layer.weight"])
    assert type(network.layer.weight).__name__ == "LazyWeight"
    with pytest.raises(fewbits.ModelError, match="of another shape"):
        from_pretrained(folder, Net, width=8)
    with pytest.raises(fewbits.ConfigError, match="Pass a function that builds"):
        from_pretrained(folder, nn.Linear)
    with pytest.raises(fewbits.ConfigError, match="names no class"):
        from_pretrained(folder)


def test_a_configuration_that_is_no_json_stops_no_compression(tmp_path):
    class Config:
        def to_json_string(self):
            raise TypeError("no JSON")

    network = Net(8)
    network.config = Config()
    coded = fewbits.compress(network, "nearest")
    with pytest.raises(fewbits.ConfigError, match="configuration of the network is not known"):
        coded.save_pretrained(tmp_path / "net")


def test_the_card(coded, tmp_path):
    config = {"model_type": "bert", "architectures": ["BertModel"], "_name_or_path": "a/b"}
    coded.save_pretrained(tmp_path / "net", config=config, metrics={"loss|nats": 1.23456789})
    path = tmp_path / "net" / "fewbits.safetensors"
    text = (tmp_path / "net" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front == {
        "library_name": "transformers",
        "tags": ["fewbits", "compressed"],
        "base_model": "a/b",
        "base_model_relation": "quantized",
    }
    assert f"| bytes of the weights | {path.stat().st_size:,} |" in text
    assert f"| bits per weight | {8 * path.stat().st_size / (160 * 160):.3f} |" in text
    assert "| loss/nats | 1.23457 |" in text
    assert 'BertModel.from_pretrained("net")' in text
    assert yaml.safe_load(text.split("```yaml")[1].split("```")[0])["rules"]
    coded.save_pretrained(tmp_path / "net", config={"width": 160}, base_model="c/d")
    text = (tmp_path / "net" / "README.md").read_text()
    assert "library_name: fewbits\n" in text
    assert "base_model: c/d\n" in text
    assert 'fewbits.from_pretrained("net", YourNetwork)' in text


def test_errors_of_writing(coded, folder, tmp_path):
    with pytest.raises(fewbits.ConfigError, match="configuration of the network is not known"):
        coded.save_pretrained(tmp_path / "new")
    with pytest.raises(fewbits.ConfigError, match="must be plain JSON"):
        coded.save_pretrained(tmp_path / "new", config={"width": nn})
    with pytest.raises(fewbits.ConfigError, match="save_pretrained"):
        coded.save_pretrained(tmp_path / "new", config={}, processors=[3])
    with pytest.raises(fewbits.ConfigError, match="metrics"):
        coded.save_pretrained(tmp_path / "new", config={}, metrics={"loss": "low"})
    assert not (tmp_path / "new").exists()
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(fewbits.ConfigError, match=r"other weights \(model\.safetensors\)"):
        coded.save_pretrained(folder, config={})


def test_errors_of_reading(folder, tmp_path, monkeypatch):
    with pytest.raises(fewbits.SourceError, match="neither a folder nor"):
        from_pretrained(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(fewbits.SourceError, match=r"no file config\.json"):
        from_pretrained(tmp_path / "empty")
    with pytest.raises(fewbits.ConfigError, match="trust_remote_code"):
        from_pretrained(folder, Net, trust_remote_code=True)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(fewbits.MissingExtraError, match=r"fewbits\[hf\]"):
        from_pretrained("someone/net", Net)
    config = folder / "config.json"
    for text, error, message in (
        ("[]", fewbits.SourceError, "must be a JSON object"),
        ("{", fewbits.SourceError, "must be JSON"),
        ("{}", fewbits.ConfigError, "not quantized"),
        ('{"quantization_config": {"quant_method": "gptq"}}', fewbits.ConfigError, "by 'gptq'"),
        (
            '{"quantization_config": {"quant_method": "fewbits", "lazy": 1}}',
            fewbits.ConfigError,
            "true or false",
        ),
    ):
        config.write_text(text)
        with pytest.raises(error, match=message):
            from_pretrained(folder, Net)
    (folder / "fewbits.safetensors").unlink()
    ours = {"quantization_config": {"quant_method": "fewbits"}, "width": 160}
    config.write_text(json.dumps(ours))
    with pytest.raises(fewbits.SourceError, match=r"no file fewbits\.safetensors"):
        from_pretrained(folder, Net)
    config.write_text(json.dumps({**ours, "model_type": "bert", "architectures": ["BertModel"]}))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(fewbits.MissingExtraError, match="needs the package 'transformers'"):
        from_pretrained(folder)
