"""compressed-tensors folders: words by hand, then what its own package and transformers read."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fewbits
import transformers_networks
from cli_runs import run, run_json
from fewbits.coded import Codebook, CodebookTensor, Contents, GridTensor, RawTensor
from fewbits.errors import ConfigError
from fewbits.exporters import export
from fewbits.sources import load_model

TO = "compressed-tensors"
UINT32 = 0xFFFFFFFF


def network(dtype=torch.float32):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 6)).to(dtype).eval()


def read(folder):
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def values_of(tensors, layer, bits):
    """Return the values of a packed weight, unpacked one integer at a time."""
    rows, columns = tensors[f"{layer}.weight_shape"].tolist()
    share, scale = 32 // bits, tensors[f"{layer}.weight_scale"].float()
    found = torch.empty(rows, columns)
    for row, words in enumerate(tensors[f"{layer}.weight_packed"].tolist()):
        for column in range(columns):
            field = (words[column // share] & UINT32) >> (bits * (column % share)) & (1 << bits) - 1
            step = scale[row, column * scale.shape[1] // columns]
            found[row, column] = (field - (1 << (bits - 1))) * step
    return found


@pytest.mark.parametrize(
    ("method", "options", "bits", "group"),
    [
        ({"bits": 4, "group": 32}, {}, 4, 32),
        ({"bits": 3}, {}, 4, None),
        ({"bits": 8}, {}, 8, None),
        ({"levels": 16}, {}, 8, None),
        ({"levels": 16}, {"bits": 5}, 5, None),
        ({"bits": 2}, {"bits": 2, "group": 64}, 2, 64),
        ({"bits": 3, "group": 64}, {"bits": 3, "group": 32}, 3, 32),
        ({"bits": 7, "per": "tensor"}, {"bits": 7}, 7, None),
    ],
    ids=str,
)
def test_packed_integers_are_the_networks(method, options, bits, group, tmp_path):
    net = network()
    coded = fewbits.compress(net, fewbits.Nearest(**method))
    told = export(coded, tmp_path / "net", to=TO, model=net, **options)
    config, tensors = read(tmp_path / "net")
    assert told.weights == {"2.weight": bits, "4.weight": bits}
    for layer in ("2", "4"):
        wanted = coded.state_dict()[f"{layer}.weight"]
        assert torch.equal(values_of(tensors, layer, bits), wanted)
    settings = config["quantization_config"]
    assert (settings["quant_method"], settings["format"]) == (TO, "pack-quantized")
    scheme = settings["config_groups"]["group_0"]
    assert scheme["targets"] == ["Linear"]
    assert scheme["weights"]["num_bits"] == bits
    assert scheme["weights"]["group_size"] == group
    assert scheme["weights"]["strategy"] == ("group" if group else "channel")
    assert settings["ignore"] == []
    assert tensors["0.weight"].dtype == torch.float16
    assert "0.weight: in float16, rounded: it is not the weight of a linear layer" in told.notes
    assert any("config.json tells only" in note for note in told.notes)
    assert any("one stream of bits" in note for note in told.notes) == (bits in (3, 5, 7))


def test_several_schemes_name_their_layers(tmp_path):
    net = network()
    rules = (
        fewbits.Rule("2.weight", fewbits.Nearest(bits=4, group=32)),
        fewbits.Rule("4.weight", fewbits.Nearest(bits=8)),
        fewbits.Rule("0.weight", None),
    )
    coded = fewbits.compress(net, fewbits.Recipe(rules))
    told = export(coded, tmp_path / "net", to=TO, model=net)
    groups = read(tmp_path / "net")[0]["quantization_config"]["config_groups"]
    assert [g["targets"] for g in groups.values()] == [["2"], ["4"]]
    assert any("4 bits in groups of 32, 8 bits in rows" in note for note in told.notes)
    assert read(tmp_path / "net")[1]["0.weight"].dtype == torch.float32
    told = export(coded, tmp_path / "one", to=TO, model=net, bits=8, group=32)
    assert told.weights == {"2.weight": 8, "4.weight": 8}
    assert not any("llama.cpp" in note for note in told.notes)
    told = export(coded, tmp_path / "few", to=TO, model=net, bits=4)
    assert told.weights == {"2.weight": 4}
    assert "4.weight: in float16, rounded: its integers take 8 bits, more than 4" in told.notes
    assert read(tmp_path / "few")[0]["quantization_config"]["ignore"] == ["4"]
    same = fewbits.compress(net, fewbits.Nearest(bits=4, group=64))  # of "4", a row is a group
    export(same, tmp_path / "same", to=TO, model=net)
    groups = read(tmp_path / "same")[0]["quantization_config"]["config_groups"]
    assert [g["weights"]["group_size"] for g in groups.values()] == [64]
    told = export(coded, tmp_path / "own", to=TO, model=net, group=48)
    assert "2 weights keep their own groups: group=48 does not divide these" in told.notes
    told = export(coded, tmp_path / "odd", to=TO, model=net, group=16)
    assert not any("keep their own groups" in note for note in told.notes)
    assert any("vLLM's kernels have" in note for note in told.notes)


def test_what_does_not_fit_is_told(tmp_path):
    net = network()
    state = fewbits.compress(net, fewbits.Nearest(bits=4)).tensors
    index, wide = state["2.weight"].index, np.arange(-(2**15), 2**15).astype(np.int32)
    book = Codebook(np.linspace(-1, 1, 15, dtype=np.float32))
    changed = {
        **state,
        "2.weight": CodebookTensor((64, 256), "float32", index + 7, book),
        "4.weight": GridTensor((6, 64), "float32", wide[:384].reshape(6, 64), np.float32([1e-4])),
    }
    changed["4.bias"] = RawTensor((6,), "complex128", np.zeros(96, np.uint8))
    coded = fewbits.CodedModel(Contents(changed))
    told = export(coded, tmp_path / "net", to=TO, model=net)
    assert told.weights == {}
    assert "4.bias: left out, the format has no complex128" in told.notes
    assert "4.bias" not in read(tmp_path / "net")[1]
    assert "2.weight: in float16, rounded: it is on a codebook" in told.notes
    assert "4.weight: in float16, rounded: its integers take 16 bits, more than 8" in told.notes
    assert "no weight fits: the folder is that of a network of floats" in told.notes
    assert "quantization_config" not in read(tmp_path / "net")[0]
    large = GridTensor((6, 64), "float16", wide[:384].reshape(6, 64) % 9, np.float32([1e-9]))
    coded = fewbits.CodedModel(Contents({**state, "4.weight": large}))
    told = export(coded, tmp_path / "net", to=TO, model=net)
    assert "4.weight: in float16: its steps are beyond float16" in told.notes


def test_steps_of_16_bits_are_rounded_once_and_that_is_told(tmp_path):
    net = network(torch.bfloat16)
    state = fewbits.compress(net, fewbits.Nearest(bits=4)).tensors
    fine = np.float32(np.linspace(0.1, 0.2, 6))
    weight = GridTensor((6, 64), "bfloat16", state["4.weight"].index, fine)
    coded = fewbits.CodedModel(Contents({**state, "4.weight": weight}))
    told = export(coded, tmp_path / "net", to=TO, model=net)
    note = next(note for note in told.notes if "rounded to bfloat16" in note)
    scale = read(tmp_path / "net")[1]["4.weight_scale"]
    assert torch.equal(scale, torch.from_numpy(fine).to(torch.bfloat16)[:, None])
    worst = float((scale.float()[:, 0] / torch.from_numpy(fine) - 1).abs().max())
    assert f"by up to {100 * worst:.2g} %" in note
    told = export(coded, tmp_path / "net", to=TO, model=net, scales="float32")
    assert not any("rounded to bfloat16" in note for note in told.notes)
    assert np.array_equal(read(tmp_path / "net")[1]["4.weight_scale"].numpy()[:, 0], fine)


def test_tied_weights_have_both_names_without_transformers(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Embedding(64, 64))
    net[1].weight = net[0].weight
    coded = fewbits.compress(net, fewbits.Nearest(bits=4))
    told = export(coded, tmp_path / "net", to=TO, model=net)
    tensors = read(tmp_path / "net")[1]
    assert torch.equal(tensors["0.weight"], tensors["1.weight"])
    assert any(note.startswith("0.weight") and "tied" in note for note in told.notes)


def test_folders_and_options_that_cannot_be(tmp_path):
    net = network()
    coded = fewbits.compress(net, fewbits.Nearest())
    for options in ({"bits": 9}, {"bits": True}, {"group": 0}, {"scales": "int8"}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            export(coded, tmp_path / "net", to=TO, model=net, **options)
    with pytest.raises(ConfigError, match="tokenizer must be the path of a folder"):
        export(coded, tmp_path / "net", to=TO, model=net, tokenizer="nowhere")
    with pytest.raises(ConfigError, match="has no files of a tokenizer"):
        export(coded, tmp_path / "net", to=TO, model=net, tokenizer=str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file, and a folder is written"):
        export(coded, tmp_path / "file", to=TO, model=net)
    with pytest.raises(FileNotFoundError):
        export(coded, tmp_path / "no" / "net", to=TO, model=net)
    assert not (tmp_path / "net").exists()
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "model-00001-of-00002.safetensors").write_text("")
    with pytest.raises(ConfigError, match="already has other weights"):
        export(coded, tmp_path / "net", to=TO, model=net)


def test_the_command_line_writes_a_folder(tmp_path):
    source, file = "builtin:digits-mlp", tmp_path / "net.fewbits"
    fewbits.compress(load_model(source).module, fewbits.Nearest(bits=4), source=source).save(file)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text("{}")
    out = tmp_path / "net"
    found = run_json(
        "export", file, "--to", TO, "-o", f"{out}/", "--set", f"tokenizer={tmp_path / 'words'}"
    )
    assert found["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert {path.name for path in out.iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json")
    }
    assert set(found["weights"].values()) == {4}
    told = run("export", file, "--to", TO, "-o", out, code=1).stderr
    assert "is a folder with files. Name another, or add --force." in told
    run("export", file, "--to", TO, "-o", out, "--force")


# -- read back by others


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [{"bits": 4, "group": 32}, {"bits": 8}, {"levels": 5}], ids=str)
def test_its_own_package_reads_the_same_values(method, dtype, tmp_path):
    package = pytest.importorskip("compressed_tensors")
    net = network(dtype)
    coded = fewbits.compress(net, fewbits.Nearest(**method))
    export(coded, tmp_path / "net", to=TO, model=net)
    config, tensors = read(tmp_path / "net")
    settings = package.quantization.QuantizationConfig.model_validate(config["quantization_config"])
    blank = network(dtype)
    package.quantization.apply_quantization_config(blank, settings)
    kit = package.compressors.ModelCompressor(quantization_config=settings)
    kit.compress_model(blank)
    blank.load_state_dict(tensors)
    kit.decompress_model(blank)
    wanted = coded.state_dict()
    for layer in ("2", "4"):
        assert torch.equal(blank.get_submodule(layer).weight, wanted[f"{layer}.weight"])
    assert torch.equal(blank[0].weight, wanted["0.weight"].half().to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [{"bits": 4, "group": 32}, {"bits": 8}], ids=str)
@pytest.mark.parametrize("dequantize", [False, True])
def test_transformers_reads_the_same_values(method, dtype, dequantize, tmp_path):
    transformers = pytest.importorskip("transformers", minversion="5.24")
    pytest.importorskip("compressed_tensors")
    net = transformers_networks.make("LlamaForCausalLM").to(dtype)
    coded = fewbits.compress(net, fewbits.Nearest(**method))
    told = export(coded, tmp_path / "net", to=TO, model=net)
    assert len(told.weights) == 14
    config, tensors = read(tmp_path / "net")
    assert config["quantization_config"]["ignore"] == ["lm_head"]
    assert "lm_head.weight" not in tensors
    settings = {}
    if dequantize:
        chosen = transformers.CompressedTensorsConfig(dequantize=True)
        settings = {"quantization_config": chosen}
    load = transformers.AutoModelForCausalLM.from_pretrained
    told = pytest.warns(UserWarning, match="already has a `quantization_config`")
    with told if dequantize else torch.no_grad():
        found = load(tmp_path / "net", **settings)
    with torch.no_grad():
        found(torch.arange(4)[None])  # unpacks
    assert found.dtype == dtype
    state = found.state_dict()
    for name, value in coded.state_dict().items():
        tied = name in ("model.embed_tokens.weight", "lm_head.weight")
        wanted = value.half().float() if tied and dtype == torch.float32 else value
        assert torch.equal(state[name], wanted), name
