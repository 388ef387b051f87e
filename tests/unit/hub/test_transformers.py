"""What transformers does with a folder: lazy weights, dtypes, devices, other heads, errors."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import fewbits
from fewbits.engine.paged.lazy_weights import LazyWeight

transformers = pytest.importorskip("transformers", minversion="5.24")


@pytest.fixture(scope="module")
def llama():
    config = transformers.LlamaConfig(
        vocab_size=288, hidden_size=128, intermediate_size=160, num_hidden_layers=1,
        num_attention_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def coded(llama):
    return fewbits.compress(llama, "nearest")


@pytest.fixture(scope="module")
def written(coded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    coded.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    for path in written.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


IDS = torch.arange(3, 11).reshape(1, 8)


def logits(network):
    with torch.no_grad():
        return network(IDS).logits


def load(folder, loader="AutoModelForCausalLM", **settings):
    return getattr(transformers, loader).from_pretrained(folder, **settings)


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_ordinary_network_comes_back(folder, coded, tmp_path):
    network = load(folder)
    wanted = coded.state_dict()
    assert all(torch.equal(values, wanted[key]) for key, values in network.state_dict().items())
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert not network.is_quantized
    assert all(p.requires_grad for p in network.parameters())
    network.save_pretrained(tmp_path / "floats")
    config = json.loads((tmp_path / "floats" / "config.json").read_text())
    assert not {"quantization_config", "transformers_weights"} & set(config)
    assert torch.equal(logits(load(tmp_path / "floats")), logits(network))


def test_lazy_weights_of_the_config(coded, llama, tmp_path):
    coded.save_pretrained(tmp_path / "lazy", lazy=True)
    network = load(tmp_path / "lazy")
    wanted = logits(coded.load_into(copy.deepcopy(llama)))
    weights = dict(network.named_parameters())
    lazy = {name for name, weight in weights.items() if isinstance(weight, LazyWeight)}
    assert {"model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"} <= lazy
    assert "model.norm.weight" not in lazy
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert torch.equal(logits(network), wanted)
    assert network.config.to_dict()["quantization_config"]["lazy"]
    assert not network.hf_quantizer.is_trainable
    with pytest.raises(ValueError, match="not serializable"):
        network.save_pretrained(tmp_path / "no")
    plain = network.dequantize()
    assert not any(isinstance(weight, LazyWeight) for weight in plain.parameters())
    assert plain.lm_head.weight is plain.model.embed_tokens.weight
    assert torch.equal(logits(plain), wanted)
    plain.save_pretrained(tmp_path / "floats")
    assert torch.equal(logits(load(tmp_path / "floats")), wanted)


def test_lazy_where_it_is_asked_for(folder, coded):
    network = fewbits.from_pretrained(folder, lazy=True)
    assert isinstance(network.model.embed_tokens.weight, LazyWeight)
    half = fewbits.from_pretrained(folder, lazy=True, dtype=torch.bfloat16)
    assert isinstance(half.model.embed_tokens.weight, LazyWeight)
    assert logits(half).dtype == torch.bfloat16
    with pytest.raises(fewbits.ConfigError, match="device_map is 'auto'"):
        fewbits.from_pretrained(folder, lazy=True, device_map="auto")
    on_device = fewbits.from_pretrained(folder, lazy=True, device_map="cpu")
    assert isinstance(on_device.model.embed_tokens.weight, LazyWeight)
    assert torch.equal(logits(on_device), logits(network))


def test_dtype_and_devices(folder, coded, tmp_path):
    wanted = coded.state_dict()
    half = load(folder, dtype=torch.bfloat16)
    for key, values in half.state_dict().items():
        assert torch.equal(values, wanted[key].to(torch.bfloat16))
    mapped = load(folder, device_map="auto")
    assert torch.equal(logits(mapped), logits(load(folder)))
    places = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu",
              "model.rotary_emb": "cpu", "lm_head": "cpu"}  # fmt: skip
    offloaded = load(folder, device_map=places, offload_folder=str(tmp_path / "offload"))
    assert torch.equal(logits(offloaded), logits(mapped))


def test_modules_that_stay_in_float32(tmp_path):
    config = transformers.T5Config(
        vocab_size=96, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2
    )
    network = transformers.T5ForConditionalGeneration(config).eval()
    fewbits.compress(network, "nearest").save_pretrained(tmp_path / "ours")
    network.save_pretrained(tmp_path / "theirs")
    ours, theirs = (
        load(tmp_path / name, "AutoModelForSeq2SeqLM", dtype=torch.float16)
        for name in ("ours", "theirs")
    )
    assert theirs.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype == torch.float32
    dtypes = {key: values.dtype for key, values in theirs.state_dict().items()}
    assert {key: values.dtype for key, values in ours.state_dict().items()} == dtypes


def test_the_base_model_and_another_head(folder, coded):
    base, info = load(folder, "AutoModel", output_loading_info=True)
    assert type(base) is transformers.LlamaModel
    assert not info["missing_keys"]
    wanted = coded.state_dict()
    assert all(torch.equal(v, wanted[f"model.{key}"]) for key, v in base.state_dict().items())
    classifier, info = load(
        folder, "AutoModelForSequenceClassification", num_labels=3, output_loading_info=True
    )
    assert info["missing_keys"] == {"score.weight"}
    key = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(classifier.state_dict()[key], wanted[key])


def test_quantized_inputs(llama, tmp_path):
    coded = fewbits.compress(llama, "nearest", calibration=[IDS], activations=8)
    coded.save_pretrained(tmp_path)
    network = load(tmp_path)
    wanted = logits(coded.load_into(copy.deepcopy(llama)))
    assert torch.equal(logits(network), wanted)
    assert network.is_quantized
    plain = logits(network.dequantize())
    assert not torch.equal(plain, wanted)


def test_without_fewbits_nothing_is_loaded(folder, monkeypatch):
    from transformers.quantizers import auto

    from fewbits.hub.hook import register_when_imported

    with monkeypatch.context() as unregistered:
        unregistered.delitem(auto.AUTO_QUANTIZER_MAPPING, "fewbits")
        unregistered.delitem(auto.AUTO_QUANTIZATION_CONFIG_MAPPING, "fewbits")
        with pytest.raises(OSError, match=r"no file named .*model\.safetensors"):
            load(folder)
        register_when_imported()  # transformers is there already
        load(folder)


def test_errors_of_weights(folder):
    edit(folder, hidden_size=64, head_dim=32)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        load(folder)
    path = folder / "fewbits.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(fewbits.CorruptFileError, match=r"fewbits\.safetensors.*checksum"):
        load(folder)


def test_weights_of_another_network(folder, tmp_path):
    fewbits.compress(nn.Linear(8, 8), "nearest").save_pretrained(tmp_path / "x", config={})
    (tmp_path / "x" / "fewbits.safetensors").replace(folder / "fewbits.safetensors")
    with pytest.raises(fewbits.ModelError, match="none of its 2 tensors"):
        load(folder)


def test_a_file_from_elsewhere(folder, coded, tmp_path):
    coded.save(tmp_path / "net.fewbits")
    config = transformers.AutoConfig.from_pretrained(folder).to_dict()
    read = fewbits.CodedModel.load(tmp_path / "net.fewbits")
    read.save_pretrained(tmp_path / "new", config=config)
    network = fewbits.from_pretrained(tmp_path / "new")
    assert type(network) is transformers.LlamaForCausalLM
    assert torch.equal(logits(network), logits(load(folder)))


def test_classes_that_transformers_lacks(folder):
    edit(folder, architectures=["LlamaForCausalLanguage"])
    with pytest.raises(fewbits.ConfigError, match=r"LlamaForCausalLanguage.*LlamaForCausalLM"):
        fewbits.from_pretrained(folder)
    network = fewbits.from_pretrained(folder, transformers.AutoModelForCausalLM)
    assert type(network) is transformers.LlamaForCausalLM


def test_a_tokenizer_and_how_to_generate(coded, llama, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: place for place, word in enumerate(("<pad>", "a", "quick", "fox"))}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<pad>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")
    llama = copy.deepcopy(llama)
    llama.generation_config.max_new_tokens = 7
    coded.save_pretrained(tmp_path, llama, processors=[tokenizer])
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)("quick fox")["input_ids"] == [2, 3]
    assert load(tmp_path).generation_config.max_new_tokens == 7


def test_compressing_while_loading_is_refused(llama, tmp_path):
    from fewbits.hub.quantizer import FewbitsConfig

    llama.save_pretrained(tmp_path)
    with pytest.raises(fewbits.ConfigError, match=r"fewbits\.compress\(model"):
        load(tmp_path, quantization_config=FewbitsConfig())
