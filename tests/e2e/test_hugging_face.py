"""Folders of Hugging Face: written here, loaded by transformers in another process, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

import fewbits
from hub_stand_in import hub
from transformers_networks import LOADERS, inputs, make

transformers = pytest.importorskip("transformers", minversion="5.24")

ELSEWHERE = """
import json, sys
import fewbits
assert not {"torch", "transformers"} & set(sys.modules)
import torch, transformers
torch.set_num_threads(1)
for folder, loader in json.loads(sys.argv[1]).items():
    batch = torch.load(f"{folder}/inputs.pt")
    found = {}
    for lazy in (False, True):
        config = transformers.AutoConfig.from_pretrained(folder)
        config.quantization_config["lazy"] = lazy
        network, info = getattr(transformers, loader).from_pretrained(
            folder, config=config, output_loading_info=True
        )
        assert not any(info.values()), info
        assert network.device.type == "cpu" and not network.training
        with torch.no_grad():
            found[lazy] = network(**batch).logits, dict(network.state_dict())
    torch.save(found[False], f"{folder}/found.pt")
    assert torch.equal(found[False][0], found[True][0])
    own = fewbits.from_pretrained(folder)
    assert type(own) is type(network)
    with torch.no_grad():
        assert torch.equal(own(**batch).logits, found[False][0])
        if loader == "AutoModelForCausalLM":
            network = transformers.AutoModelForCausalLM.from_pretrained("someone/llama")
            assert torch.equal(network(**batch).logits, found[False][0])
"""


# In this process, and of one architecture, tests/unit/hub does the same in every run.
@pytest.mark.slow
def test_five_architectures_in_another_process(tmp_path, monkeypatch):
    networks = {name: make(name) for name in LOADERS}
    for name, network in networks.items():
        folder = tmp_path / name
        coded = fewbits.compress(network, fewbits.Nearest(bits=4))
        coded.save_pretrained(folder)
        torch.save(inputs(name), folder / "inputs.pt")
    jobs = {str(tmp_path / name): loader for name, loader in LOADERS.items()}
    command = [sys.executable, "-c", ELSEWHERE, json.dumps(jobs)]
    with hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        files = (tmp_path / "LlamaForCausalLM").iterdir()
        server.repositories["someone/llama"] = {"main": {p.name: p.read_bytes() for p in files}}
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "LOAD REPORT" not in done.stderr
    for name, network in networks.items():
        folder = tmp_path / name
        logits, state = torch.load(folder / "found.pt")
        wanted = fewbits.load(folder / "fewbits.safetensors")
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[key], wanted[key]) for key in wanted)
        assert all(state[key].dtype == wanted[key].dtype for key in wanted)
        with torch.no_grad():
            here = fewbits.load(folder / "fewbits.safetensors", into=make(name))
            assert torch.equal(here(**inputs(name)).logits, logits)
        network.to(torch.bfloat16).save_pretrained(tmp_path / f"{name}-bf16")
        ours, theirs = _bytes(folder), _bytes(tmp_path / f"{name}-bf16")
        print(f"{name}: {ours:,} bytes; in bf16 {theirs:,}")
        assert ours < theirs


def _bytes(folder):
    """Bytes of the files that loading needs."""
    suffixes = (".json", ".safetensors")
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in suffixes)
