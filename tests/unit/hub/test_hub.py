"""Push and pull through huggingface_hub, to a stand-in on this machine; networks of any class."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import fewbits
from hub_stand_in import hub

pytest.importorskip("huggingface_hub", minversion="2.4")

NETWORK = '''
import torch, fewbits, fewbits.hub
from torch import nn

class Net(nn.Module, fewbits.hub.Mixin):
    """Two layers."""

    def __init__(self, width: int = 4, *, depth: int = 1, activation=nn.ReLU()):
        super().__init__()
        layers = [m for _ in range(depth) for m in (nn.Linear(width, width), activation)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x):
        return self.layers(x)
'''


@pytest.fixture
def net_class():
    space = {"__name__": "my_networks"}
    exec(NETWORK, space)
    return space["Net"]


@pytest.fixture
def net(net_class):
    torch.manual_seed(0)
    return net_class(160, depth=2).eval()


def equal(network, coded):
    wanted = coded.state_dict()
    state = network.state_dict()
    return state.keys() == wanted.keys() and all(torch.equal(state[k], wanted[k]) for k in wanted)


def test_a_network_of_any_class(net, net_class, tmp_path):
    coded = fewbits.compress(net, "nearest")
    size = net.save_pretrained(tmp_path / "net", coded)
    assert size == coded.size_report().file_bytes
    assert (tmp_path / "net" / "fewbits.safetensors").stat().st_size == size + 144
    config = json.loads((tmp_path / "net" / "config.json").read_text())
    assert {"width": 160, "depth": 2}.items() <= config.items()
    loaded = net_class.from_pretrained(tmp_path / "net")
    assert equal(loaded, coded)
    assert not loaded.training
    assert equal(fewbits.from_pretrained(tmp_path / "net", net_class), coded)
    x = torch.randn(3, 160)
    lazy = net_class.from_pretrained(tmp_path / "net", lazy=True)
    assert type(lazy.layers[0].weight).__name__ == "LazyWeight"
    with torch.no_grad():
        assert torch.equal(lazy(x), loaded(x))
    deep = fewbits.compress(net_class(4, depth=3), "nearest")
    coded.save_pretrained(tmp_path / "net", lazy=True)
    lazy = fewbits.from_pretrained(tmp_path / "net", net_class)
    assert type(lazy.layers[0].weight).__name__ == "LazyWeight"
    deep.save_pretrained(tmp_path / "deep")
    with pytest.raises(fewbits.ModelError, match="another architecture"):
        net_class.from_pretrained(tmp_path / "deep", depth=1)


def test_errors_of_the_mixin(net, net_class, tmp_path):
    with pytest.raises(fewbits.ConfigError, match=r"coded = fewbits\.compress"):
        net.save_pretrained(tmp_path)
    with pytest.raises(fewbits.ConfigError, match="argument 'lazy'"):
        type("Bad", (net_class,), {"__init__": lambda self, lazy: None})
    other = type("Other", (fewbits.hub.Mixin,), {})()
    with pytest.raises(fewbits.ConfigError, match=r"torch\.nn\.Module too"):
        other.save_pretrained(tmp_path, fewbits.compress(nn.Linear(4, 4), "nearest"))


PUSH_AND_PULL = """
import os, sys
exec(os.environ["NETWORK"])
assert "transformers" not in sys.modules
torch.manual_seed(0)
net = Net(160, depth=2).eval()
coded = fewbits.compress(net, "nearest")
print(net.push_to_hub("someone/net", coded, token="secret", metrics={"accuracy": 0.5}))
print(coded.push_to_hub("someone/net", token="secret", revision="lazy", lazy=True))
print(coded.push_to_hub("someone/new", token="secret", config={}))
found = []
for revision in ("main", "lazy"):
    found.append(Net.from_pretrained("someone/net", revision=revision, token="secret"))
    found.append(fewbits.from_pretrained("someone/net", Net, revision=revision, token="secret"))
print([type(network.layers[0].weight).__name__ for network in found])
assert all(torch.equal(network.layers[2].bias, found[0].layers[2].bias) for network in found)
torch.save(found[1].state_dict(), sys.argv[1])
try:
    fewbits.from_pretrained("someone/nothing", Net, token="secret")
except Exception as error:
    print(type(error).__name__)
try:
    fewbits.from_pretrained("someone/net", Net, revision="bare", token="secret")
except fewbits.SourceError as error:
    print(error)
"""


def test_push_and_pull(net, tmp_path, monkeypatch):
    coded = fewbits.compress(net, "nearest")
    with hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("NETWORK", textwrap.dedent(NETWORK))
        server.repositories["someone/net"] = {"main": {}, "bare": {}}
        command = [sys.executable, "-c", PUSH_AND_PULL, str(tmp_path / "found.pt")]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        told = done.stdout.splitlines()
        assert told[0].startswith(f"{server.url}/someone/net/commit/")
        assert set(server.tokens) == {"Bearer secret"}
        branches = server.repositories["someone/net"]
        assert set(branches) == {"main", "lazy", "bare"}
        assert "someone/new" in server.repositories
        assert set(branches["main"]) == {"README.md", "config.json", "fewbits.safetensors"}
        assert b"| accuracy | 0.5 |" in branches["main"]["README.md"]
        assert b"# net\n" in branches["main"]["README.md"]
        assert json.loads(branches["lazy"]["config.json"])["quantization_config"]["lazy"]
        assert told[3] == str(["Parameter", "Parameter", "LazyWeight", "LazyWeight"])
        assert told[4] == "RepositoryNotFoundError"
        assert "has no file config.json" in told[5]
        state, wanted = torch.load(tmp_path / "found.pt"), coded.state_dict()
        assert all(torch.equal(state[key], wanted[key]) for key in wanted)
