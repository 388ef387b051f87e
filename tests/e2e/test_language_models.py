"""Language models and encoder-decoders: compress, evaluate and load from the command line."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fewbits
from cli_runs import one_line_error, run, run_json

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

SHARED = Path(os.environ.get("FEWBITS_DATA", Path(__file__).parents[3] / "shared" / "data"))
ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
WORDS = len(ALPHABET) + 1
TEXT = "the quick brown fox jumps over the lazy dog while the moon is up and " * 12
CODE = '''
import torch

def positive(model, batches):
    """Weights above zero; a metric that needs no data."""
    return float(sum((p > 0).sum() for p in model.parameters()))

def certainty(model, batches):
    """Mean largest logit."""
    return torch.stack([model(**b).logits.amax(-1).mean() for b in batches]).mean()

certainty.higher_is_better = False

def called(model, batch):
    return model(input_ids=batch["input_ids"], use_cache=False).logits

def speech():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(3, 8, 40, generator=draw)
    labels = torch.randint(0, 257, (3, 6), generator=draw)
    return {name: [{"input_features": features, "labels": labels}] for name in ("train", "test")}

def listened(model, batch):
    return model(**{**batch, "input_features": batch["input_features"]}).logits

alone = lambda model: 0
'''
ELSEWHERE = """
import sys, torch, fewbits
from fewbits.sources import load_model
for name, inputs in torch.load("inputs.pt").items():
    network = load_model(name, pretrained=False).module
    fewbits.load(f"{name}.fewbits", into=network)
    with torch.no_grad():
        torch.save(network(**inputs).logits, f"{name}.pt")
"""


def save(network, folder):
    """Save a network with a tokenizer of bytes next to it."""
    network.save_pretrained(folder)
    bytes_only = tokenizers.models.BPE({c: i for i, c in enumerate(["<pad>", *ALPHABET])}, [])
    inner = tokenizers.Tokenizer(bytes_only)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>")
    made.save_pretrained(folder)


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=1, n_head=2, n_embd=16, vocab_size=WORDS, n_positions=64, bos_token_id=0,
            eos_token_id=0,
        )
    )  # fmt: skip


def t5():
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, vocab_size=WORDS,
            decoder_start_token_id=0,
        )
    )  # fmt: skip


def whisper():
    sizes = {f"{p}_{k}": v for p in ("encoder", "decoder")
             for k, v in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))}  # fmt: skip
    tokens = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    return transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            d_model=16, vocab_size=WORDS, num_mel_bins=8, max_source_positions=20,
            max_target_positions=64, decoder_start_token_id=1, **sizes, **tokens,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Folders of tiny networks of random weights."""
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    for make in (gpt2, t5, whisper):
        save(make(), folder / make.__name__)
    save(gpt2().to(torch.bfloat16), folder / "half")
    return folder


@pytest.fixture
def here(networks, tmp_path, monkeypatch):
    """Work in a folder with the networks, two texts and a module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("mytask", None)
    for one in networks.iterdir():
        (tmp_path / one.name).symlink_to(one)
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "b.txt").write_text(TEXT[::-1])
    (tmp_path / "mytask.py").write_text(CODE)
    yield tmp_path
    sys.modules.pop("mytask", None)


CALIBRATION = ("--calibration", "text:a.txt:tokens=16,samples=12")
GPTQ = ("--method", "gptq", "--bits", "4")
HELD_OUT = "text:b.txt:tokens=16,samples=10"


def test_a_language_model_from_a_folder_and_a_text(here):
    told = run_json("compress", "gpt2", *CALIBRATION, *GPTQ, "-o", "m.fewbits")
    assert told["quantized"]["share"] > 0.9
    found = run_json("evaluate", "m.fewbits", "--model", "gpt2", "--metric", "perplexity",
                     "--data", HELD_OUT)  # fmt: skip
    assert found["tokens"] == 10 * 15
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]), rel=1e-4)
    assert found["perplexity"] == pytest.approx(WORDS, rel=0.3)  # random weights know nothing
    assert found["dtype"] == "float32"
    again = run_json("evaluate", "m.fewbits", "--metric", "perplexity", "--data", HELD_OUT)
    assert again["perplexity"] == found["perplexity"]  # the file names its folder


def test_half_precision_is_kept_and_told(here):
    told = run_json("compress", "half", *CALIBRATION, "--data", HELD_OUT, "--evaluate", *GPTQ,
                    "-o", "m.fewbits")  # fmt: skip
    assert told["dtype"] == "bfloat16"
    assert set(told["accuracy"]) == {"bfloat16", "compressed"}
    found = run_json("evaluate", "m.fewbits", "--data", HELD_OUT)
    assert found["dtype"] == "bfloat16"
    assert found["loss"] == pytest.approx(told["accuracy"]["compressed"]["loss"], rel=1e-3)
    assert ", in bfloat16" in run("evaluate", "m.fewbits", "--data", HELD_OUT).stdout


def test_weights_of_another_folder_keep_their_dtype(here):
    words = ("compress", "transformers:./gpt2/config.json", "--weights", "half", *CALIBRATION)
    told = run_json(*words, *GPTQ, "-o", "m.fewbits")
    assert [text for text in told["notes"] if "bfloat16, as in half" in text]
    assert {row["dtype"] for row in told["size"]["rows"] if row["name"].endswith("bias")} == {
        "bfloat16"
    }


def test_the_same_text_does_not_calibrate_and_evaluate(here):
    def refused(*words):
        return run("compress", "gpt2", *words, "-o", "m.fewbits", code=1).stderr

    told = refused("--data", "text:a.txt:tokens=16", "--evaluate", *GPTQ)
    assert "is one file" in told
    assert "--calibration" in told
    other = ("--data", "text:a.txt:tokens=8", "--evaluate")
    assert "is one file" in refused(*CALIBRATION, *other, *GPTQ)
    search = ("--max-drop", "1", "--metric", "perplexity", "--selection", "text:a.txt:tokens=8")
    assert "which calibrate" in refused(*CALIBRATION, *search)


def test_a_budget_of_perplexity(here):
    words = ("compress", "gpt2", *CALIBRATION, "--method", "rdoq", "--metric", "perplexity")
    words += ("--max-drop", "20", "--evaluations", "2", "--selection", HELD_OUT)
    shown = run(*words, "--trace", "trace.json", "-o", "m.fewbits").stdout
    assert "selection:  perplexity" in shown
    trace = json.loads(Path("trace.json").read_text())
    best = [trial for trial in trace["trials"] if trial["chosen"]]
    assert -best[0]["score"] <= -trace["reference"] + 20


def test_metrics_of_ones_own(here):
    run("compress", "gpt2", *CALIBRATION, *GPTQ, "-o", "m.fewbits")
    words = ("evaluate", "m.fewbits", "--model", "gpt2", "--metric")
    assert run_json(*words, "mytask:positive")["mytask:positive"] > 1000
    found = run_json(*words, "mytask:certainty", "--data", HELD_OUT)
    assert set(found) >= {"mytask:certainty", "dtype", "seconds"}
    assert "accuracy" not in found
    assert "accuracy" in run_json(*words, "mytask:positive", "--min-accuracy", "5%", code=2)[
        "error"]["message"]  # fmt: skip
    assert "two arguments" in run_json(*words, "mytask:alone", code=2)["error"]["message"]
    assert "has no 'zzz'" in one_line_error(*words, "mytask:zzz")
    assert "--data" in run_json(*words, "perplexity", code=2)["error"]["message"]
    search = ("compress", "gpt2", *CALIBRATION, "--method", "rdoq", "--metric", "mytask:positive")
    told = run_json(*search, "--max-drop", "4000", "--evaluations", "2", "-o", "s.fewbits")
    assert told["trace"]["reference"] > 1000


def test_a_forward_of_ones_own(here):
    words = ("compress", "gpt2", *CALIBRATION, *GPTQ, "--forward", "mytask:called")
    run(*words, "-o", "own.fewbits")
    run("compress", "gpt2", *CALIBRATION, *GPTQ, "-o", "m.fewbits")
    assert Path("own.fewbits").read_bytes() == Path("m.fewbits").read_bytes()
    call = ("--forward", "mytask:called", "--data", HELD_OUT)
    one, two = (run_json("evaluate", "m.fewbits", *w) for w in (call, call[2:]))
    assert one["loss"] == two["loss"]
    rows = run_json("sensitivity", "gpt2", "--bits", "3", *call)["rows"]
    assert len(rows) > 4
    assert "takes module:callable" in run_json(*words[:-1], "called", "-o", "x.fewbits", code=2)[
        "error"]["message"]  # fmt: skip


def test_an_encoder_decoder_reads_its_labels(here):
    told = run_json("compress", "t5", *CALIBRATION, *GPTQ, "-o", "m.fewbits")
    assert told["quantized"]["share"] > 0.9
    found = run_json("evaluate", "m.fewbits", "--metric", "perplexity", "--data", HELD_OUT)
    assert found["tokens"] == 160  # each is predicted, the first one too


def test_whisper_by_its_own_data(here):
    words = ("compress", "whisper", "--data", "mytask:speech", *GPTQ)
    told = run_json(*words, "-o", "m.fewbits")
    assert told["quantized"]["share"] > 0.8
    run(*words, "--forward", "mytask:listened", "-o", "f.fewbits")
    found = run_json("evaluate", "m.fewbits", "--model", "whisper", "--metric", "perplexity",
                     "--data", "mytask:speech")  # fmt: skip
    assert found["tokens"] == 18


@pytest.mark.slow  # test_hugging_face.py loads five networks in another process
def test_files_load_in_another_process(here):
    draw, ids = torch.Generator().manual_seed(0), torch.arange(1, 13).reshape(1, 12)
    inputs = {
        gpt2: {"input_ids": ids},
        t5: {"input_ids": ids, "decoder_input_ids": ids},
        whisper: {
            "input_features": torch.randn(1, 8, 40, generator=draw),
            "decoder_input_ids": ids,
        },
    }
    torch.save({make.__name__: values for make, values in inputs.items()}, "inputs.pt")
    for make in inputs:
        name = make.__name__
        run("compress", name, "--method", "nearest", "--bits", "4", "-o", f"{name}.fewbits")
    subprocess.run([sys.executable, "-c", ELSEWHERE], check=True, cwd=here, capture_output=True)
    for make, values in inputs.items():
        name = make.__name__
        network = fewbits.load(f"{name}.fewbits", into=make().eval())
        with torch.no_grad():
            assert torch.equal(network(**values).logits, torch.load(f"{name}.pt"))


@pytest.mark.parametrize("make", [gpt2, t5], ids=lambda make: make.__name__)
def test_decoded_checkpoints_load_again(here, make):
    name = make.__name__
    run("compress", name, "--method", "nearest", "--bits", "8", "-o", "m.fewbits")
    Path("out").mkdir()
    shutil.copy(f"{name}/config.json", "out")
    told = run_json("decode", "m.fewbits", "-o", "out/model.safetensors")
    assert set(load_file("out/model.safetensors")) == set(load_file(f"{name}/model.safetensors"))
    assert told["tied"]
    network = type(make()).from_pretrained("out")
    wanted = fewbits.load("m.fewbits")
    state = network.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)


def test_stories260k(tmp_path, monkeypatch):
    source = SHARED / "stories260k"
    if not source.is_dir():
        pytest.skip("stories260k is not there")
    monkeypatch.chdir(tmp_path)
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=172, num_hidden_layers=5,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=512,
        rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=True,
    )  # fmt: skip
    network = transformers.LlamaForCausalLM(config)
    network.load_state_dict(_llama(load_file(source / "stories260k.safetensors")), strict=False)
    network.save_pretrained("stories")
    ids = _encode(source)
    np.save("sample.npy", np.array(ids))
    draw = torch.Generator().manual_seed(0)
    np.save("calibration.npy", torch.randint(3, 512, (8, 128), generator=draw).numpy())
    words = ("compress", "stories", "--calibration", "text:calibration.npy")
    run(*words, "--method", "gptq", "--bits", "8", "-o", "m.fewbits")
    metric = ("--metric", "perplexity", "--data", "text:sample.npy:tokens=256")
    found = run_json("evaluate", "m.fewbits", *metric)
    assert found["tokens"] == 255 * (len(ids) // 256)
    assert found["loss"] < 1.6


def _llama(state):
    """Return the weights under the names of transformers, with halves rotated, not pairs."""
    renamed = {"model.embed_tokens.weight": state["tok_embeddings.weight"]}
    renamed["model.norm.weight"] = state["norm.weight"]
    parts = {"wo": "self_attn.o_proj", "wv": "self_attn.v_proj", "wq": "self_attn.q_proj",
             "wk": "self_attn.k_proj", "w1": "mlp.gate_proj", "w2": "mlp.down_proj",
             "w3": "mlp.up_proj", "attention_norm": "input_layernorm",
             "ffn_norm": "post_attention_layernorm"}  # fmt: skip
    for name, tensor in state.items():
        _, *path = name.split(".")
        if name.startswith("layers."):
            leaf = path[-2]
            pairs = tensor.view(-1, 4, 2, 64).transpose(1, 2) if leaf in ("wq", "wk") else tensor
            renamed[f"model.layers.{path[0]}.{parts[leaf]}.weight"] = pairs.reshape(tensor.shape)
    renamed["lm_head.weight"] = renamed["model.embed_tokens.weight"]
    return renamed


def _encode(source):
    """Tokenize the sample text as the README of the network says."""
    data, place, pieces, scores = (source / "tok512.bin").read_bytes(), 4, [], []
    for _ in range(512):
        score, length = struct.unpack_from("fi", data, place)
        pieces.append(data[place + 8 : place + 8 + length])
        scores.append(score)
        place += 8 + length
    index = {piece: i for i, piece in reversed(list(enumerate(pieces)))}
    ids = [1, index[b" "]]
    for letter in (source / "tinystories_sample.txt").read_text().split("<|endoftext|>")[0]:
        code = letter.encode()
        ids += [index[code]] if code in index else [byte + 3 for byte in code]
    while True:
        joined = [pieces[a] + pieces[b] for a, b in pairwise(ids)]
        pairs = ((piece, place) for place, piece in enumerate(joined))
        best = max(((scores[index[p]], -i, index[p]) for p, i in pairs if p in index), default=None)
        if best is None:
            return ids
        ids[-best[1] : -best[1] + 2] = [best[2]]
