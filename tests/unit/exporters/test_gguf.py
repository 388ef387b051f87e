"""GGUF files: blocks by hand, then what the package gguf and transformers read."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import fewbits
import transformers_networks
from cli_runs import run_json
from fewbits.coded import Codebook, CodebookTensor, Contents, GridTensor, RawTensor
from fewbits.errors import ConfigError
from fewbits.exporters import export
from fewbits.exporters.formats.gguf_file import blocks_of
from fewbits.exporters.formats.integers import Integers
from fewbits.exporters.formats.llama import Llama
from fewbits.sources import load_model


def llama(dtype=torch.float32, **settings):
    """A Llama whose keys have fewer heads than its queries."""
    transformers = pytest.importorskip("transformers", minversion="5.24")
    shape = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape |= {"num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": 96}
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**shape | settings)
    return transformers.LlamaForCausalLM(config).to(dtype).eval()


def network(dtype=torch.float32):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 64)]
    return nn.Sequential(*layers, nn.Linear(64, 6), nn.Linear(6, 6)).to(dtype).eval()


def read(path):
    """Return keys, and by name of tensor its type and its values."""
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(path)
    keys = {name: entry.contents() for name, entry in reader.fields.items()}
    tensors = {}
    for tensor in reader.tensors:
        kind = tensor.tensor_type
        known = kind.name[0] not in "I" and kind.name != "F64"
        values = gguf.dequantize(tensor.data, kind) if known else tensor.data
        tensors[tensor.name] = kind.name, torch.from_numpy(values.copy())
    return keys, tensors


def test_blocks_by_hand():
    index = np.tile(np.arange(-8, 8, dtype=np.int32), 4).reshape(1, 64)
    index[0, 40] = 7
    found = blocks_of(Integers(index, np.float32([[0.5, 0.25]])), (1, 64))
    assert found.kind == "Q4_0"
    first, second = (bytes(block) for block in found.data)
    assert np.frombuffer(first[:2] + second[:2], "<f2").tolist() == [0.5, 0.25]
    for place, block in enumerate((first, second)):
        low, high = ([byte & 15 for byte in block[2:]], [byte >> 4 for byte in block[2:]])
        assert [code - 8 for code in low + high] == index[0, 32 * place :][:32].tolist()
    index[0, 3] = 8
    found = blocks_of(Integers(index, np.float32([[0.5]])), (1, 64))
    assert found.kind == "Q8_0"
    assert found.data[:, 2:].reshape(-1).view(np.int8).tolist() == index[0].tolist()
    assert found.data[:, :2].copy().view("<f2").tolist() == [[0.5], [0.5]]


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ({"bits": 4, "group": 32}, "Q4_0"),
        ({"bits": 3, "group": 64}, "Q4_0"),
        ({"bits": 4}, "Q4_0"),
        ({"levels": 16}, "Q8_0"),
        ({"bits": 8, "per": "tensor"}, "Q8_0"),
    ],
    ids=str,
)
def test_other_networks_keep_names_and_values(method, kind, tmp_path):
    net, path = network(), tmp_path / "net.gguf"
    coded = fewbits.compress(net, fewbits.Nearest(**method))
    told = export(coded, path, model=net)
    keys, tensors = read(path)
    assert keys["general.architecture"] == "fewbits"
    assert told.weights == dict.fromkeys(("3.weight", "4.weight"), int(kind[1]))
    state = coded.state_dict()
    assert list(tensors) == list(state)
    for name in ("3.weight", "4.weight"):
        assert tensors[name][0] == kind
        assert torch.equal(tensors[name][1], state[name])
    for name in ("0.weight", "5.weight"):
        assert tensors[name][0] == "F16"
        assert torch.equal(tensors[name][1], state[name].half().float())
    for name in ("0.bias", "1.running_var", "1.weight", "3.bias"):
        assert tensors[name][0] == "F32"
        assert torch.equal(tensors[name][1], state[name])
    assert tensors["1.num_batches_tracked"][0] == "I64"
    notes = "\n".join(told.notes)
    assert "names are those of the network, which is no Llama: it has no configuration" in notes
    assert "0.weight: in F16, blocks are for matrices" in notes
    assert "5.weight: in F16, 6 inputs share a step, which is no multiple of 32" in notes
    assert "rounded" not in notes


def test_what_does_not_fit_is_told(tmp_path):
    net, path = network(torch.bfloat16), tmp_path / "net.gguf"
    state = dict(fewbits.compress(net, fewbits.Nearest(bits=4)).tensors)
    index = state["3.weight"].index
    book = Codebook(np.linspace(-1, 1, 15, dtype=np.float32))
    fine = np.float32(np.linspace(0.1, 0.2, 6))
    state["0.weight"] = CodebookTensor((4, 1, 3, 3), "bfloat16", index[:4, :9] + 7, book)
    state["3.weight"] = GridTensor((64, 256), "bfloat16", index * 99, np.float32([1e-3]))
    state["4.weight"] = GridTensor((6, 64), "bfloat16", state["4.weight"].index, fine)
    state["5.weight"] = RawTensor((6, 6), "complex64", np.zeros(288, np.uint8))
    told = export(fewbits.CodedModel(Contents(state)), path, model=net)
    assert told.weights == {"4.weight": 4}
    notes = "\n".join(told.notes)
    assert "0.weight: in BF16, it is on a codebook" in notes
    assert "3.weight: in BF16, its integers take 11 bits, and blocks have 4 or 8" in notes
    assert "5.weight: left out, the format has no complex64" in notes
    assert "1 weights have 16 bits in the network" in notes
    tensors = read(path)[1]
    half = fine.astype(np.float16).astype(np.float32)
    worst = float(np.abs(half / fine - 1).max())
    assert f"steps of 1 weights are rounded to float16, which changes their values by up to {100 * worst:.2g} %" in notes  # fmt: skip  # noqa: E501
    wanted = torch.from_numpy(state["4.weight"].index * half[:, None])
    assert torch.equal(tensors["4.weight"][1], wanted)
    assert "5.weight" not in tensors
    tiny = GridTensor((6, 64), "float32", state["4.weight"].index, np.float32([1e-9]))
    told = export(fewbits.CodedModel(Contents({**state, "4.weight": tiny})), path, model=net)
    assert "4.weight: in F16, its steps are beyond float16" in told.notes


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("method", [{"bits": 4, "group": 32}, {"bits": 8}], ids=str)
def test_a_llama_has_names_keys_and_order_of_llama_cpp(method, tied, tmp_path):
    gguf = pytest.importorskip("gguf")
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4}
    net = llama(tie_word_embeddings=tied, rope_parameters=rope, attention_bias=True)
    coded = fewbits.compress(net, fewbits.Nearest(**method))
    told = export(coded, tmp_path / "net.gguf", model=net)
    keys, tensors = read(tmp_path / "net.gguf")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    state = {name: value for name, value in coded.state_dict().items() if name in coded.tensors}
    theirs = {names.get_name(name, (".weight", ".bias")): name for name in state}
    assert set(tensors) == set(theirs)
    assert ("output.weight" in tensors) != tied
    for name, (kind, values) in tensors.items():
        wanted = state[theirs[name]]
        heads = {"attn_q": 4, "attn_k": 2}.get(name.split(".")[-2], 0)
        if heads:  # two halves of a head become pairs
            halves = wanted.reshape(heads, 2, 8, -1)
            wanted = halves.transpose(1, 2).reshape(wanted.shape)
        assert torch.equal(values, wanted), name
        assert kind == ("F32" if wanted.dim() == 1 else "Q4_0" if method["bits"] == 4 else "Q8_0")
    expected = {
        "general.architecture": "llama", "general.quantization_version": 2,
        "general.file_type": 2 if method["bits"] == 4 else 7,
        "llama.context_length": 2048, "llama.embedding_length": 64, "llama.block_count": 2,
        "llama.feed_forward_length": 96, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 5e4, "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 4.0, "llama.vocab_size": 96, "tokenizer.ggml.model": "none",
    }  # fmt: skip
    assert {key: keys[key] for key in expected} == expected
    parts = (part for part in vars(gguf.Keys).values() if isinstance(part, type))
    known = {str(key).replace("{arch}", "llama") for part in parts for key in vars(part).values()}
    assert set(expected) <= known
    eps = keys["llama.attention.layer_norm_rms_epsilon"]
    assert eps == pytest.approx(net.config.rms_norm_eps)
    assert "names, keys and the order of rows are llama.cpp's" in told.notes
    assert any("no tokenizer" in note for note in told.notes)


def test_a_tied_embedding_has_its_name_whichever_comes_first(tmp_path):
    net = llama(tie_word_embeddings=True)
    contents = fewbits.compress(net, fewbits.Nearest(bits=4)).contents
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    assert contents.aliases == {head: embedding}
    renamed = {head if n == embedding else n: t for n, t in contents.tensors.items()}
    swapped = fewbits.CodedModel(Contents(renamed, {embedding: head}))
    told = export(swapped, tmp_path / "net.gguf", model=net)
    assert told.weights[head] == 4
    tensors = read(tmp_path / "net.gguf")[1]
    assert "output.weight" not in tensors
    assert torch.equal(tensors["token_embd.weight"][1], swapped.state_dict()[head])


def test_transformers_reads_a_llama_back(tmp_path):
    transformers = pytest.importorskip("transformers", minversion="5.24")
    pytest.importorskip("gguf")
    net = llama()
    coded = fewbits.compress(net, fewbits.Nearest(bits=4, group=32))
    export(coded, tmp_path / "net.gguf", model=net)
    load = transformers.AutoModelForCausalLM.from_pretrained
    found = load(tmp_path, gguf_file="net.gguf", dtype=torch.float32)
    wanted = coded.load_into(llama())
    ids = torch.arange(3, 19)[None]
    with torch.no_grad():
        assert torch.equal(found(ids).logits, wanted(ids).logits)


def test_frequencies_of_llama_3_are_those_of_transformers(tmp_path):
    rope = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 256,
    }  # fmt: skip
    net = llama(rope_parameters=rope, max_position_embeddings=2048)
    found = Llama(json.loads(net.config.to_json_string())).frequencies()
    plain = 5e5 ** -(torch.arange(0, 16, 2).double() / 16)
    torch.testing.assert_close((plain / found).float(), net.model.rotary_emb.inv_freq)
    assert len(found.unique()) > 2
    assert float(found.max()) == 8
    export(fewbits.compress(net, fewbits.Nearest()), tmp_path / "net.gguf", model=net)
    kind, values = read(tmp_path / "net.gguf")[1]["rope_freqs.weight"]
    assert kind == "F32"
    assert torch.equal(values, found)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"hidden_act": "gelu"}, "its activation is gelu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "its positions are scaled by 'dynamic'",
        ),
    ],
)
def test_llamas_that_llama_cpp_does_not_know(settings, why, tmp_path):
    net = llama(**settings)
    told = export(fewbits.compress(net, fewbits.Nearest()), tmp_path / "net.gguf", model=net)
    assert any(why in note for note in told.notes)


def test_another_network_of_transformers_is_no_llama(tmp_path):
    pytest.importorskip("transformers", minversion="5.24")
    net = transformers_networks.make("BertForMaskedLM")
    coded = fewbits.compress(net, fewbits.Nearest())
    told = export(coded, tmp_path / "net.gguf", model=net)
    assert any("it is no LlamaForCausalLM" in note for note in told.notes)
    assert any("left out, it is bert.embeddings" in note for note in told.notes)


@pytest.fixture
def words(tmp_path):
    """A folder with a byte-level BPE of six tokens."""
    folder = tmp_path / "words"
    folder.mkdir()
    vocab = {"<s>": 0, "a": 1, "b": 2, "ab": 3}
    added = [{"id": 0, "content": "<s>", "special": True}, {"id": 4, "content": "<tool>"}]
    (folder / "tokenizer.json").write_text(json.dumps({
        "model": {"type": "BPE", "vocab": vocab, "merges": [["a", "b"]]},
        "pre_tokenizer": {"type": "ByteLevel"}, "added_tokens": added,
        "post_processor": {"single": [{"SpecialToken": {"id": "<s>"}}]},
    }))  # fmt: skip
    config = {"bos_token": {"content": "<s>"}, "eos_token": "ab", "chat_template": "{{ a }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_the_tokenizer_of_a_folder(words, tmp_path):
    net = llama()
    coded = fewbits.compress(net, fewbits.Nearest())
    path = tmp_path / "net.gguf"
    told = export(coded, path, model=net, tokenizer=str(words))
    assert any("called 'default'" in note for note in told.notes)
    told = export(coded, path, model=net, tokenizer=str(words), pre="llama-bpe")
    assert not any("tokenizer" in note for note in told.notes)
    keys = {k.partition("ggml.")[2]: v for k, v in read(path)[0].items() if "tokenizer.ggml" in k}
    assert keys.pop("tokens") == ["<s>", "a", "b", "ab", "<tool>", *(f"[PAD{n}]" for n in range(5, 96))]  # fmt: skip  # noqa: E501
    assert keys.pop("token_type") == [3, 1, 1, 1, 4, *[5] * 91]
    assert keys == {
        "model": "gpt2", "pre": "llama-bpe", "merges": ["a b"], "bos_token_id": 0,
        "eos_token_id": 3, "add_bos_token": True,
    }  # fmt: skip
    assert read(path)[0]["tokenizer.chat_template"] == "{{ a }}"
    small = llama(vocab_size=4)
    with pytest.raises(ConfigError, match="has 5 tokens, the network 4"):
        export(fewbits.compress(small, "nearest"), path, model=small, tokenizer=str(words))


def test_tokenizers_that_cannot_be_written(words, tmp_path):
    net, path = llama(), tmp_path / "net.gguf"
    coded = fewbits.compress(net, fewbits.Nearest())
    (words / "tokenizer.json").write_text('{"model": {"type": "Unigram"}}')
    with pytest.raises(ConfigError, match="is not a byte-level BPE"):
        export(coded, path, model=net, tokenizer=str(words))
    (words / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="is no JSON"):
        export(coded, path, model=net, tokenizer=str(words))
    (words / "tokenizer.json").write_text("[]")
    with pytest.raises(ConfigError, match="must hold an object"):
        export(coded, path, model=net, tokenizer=str(words))
    with pytest.raises(ConfigError, match="tokenizer must be the path of a folder"):
        export(coded, path, model=net, tokenizer="nowhere")
    with pytest.raises(ConfigError, match="pre must be a name"):
        export(coded, path, model=net, pre="")
    assert not path.exists()


def test_the_command_line_finds_the_network(words, tmp_path):
    source, file = "builtin:digits-mlp", tmp_path / "net.fewbits"
    fewbits.compress(load_model(source).module, fewbits.Nearest(bits=4), source=source).save(file)
    out = tmp_path / "net.gguf"
    found = run_json("export", file, "-o", out, "--set", f"tokenizer={words}")
    assert found["bytes"] == out.stat().st_size
    assert "the tokenizer is left out: only Llamas have one" in found["notes"]
    assert 4 in found["weights"].values()
