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


PULL = """
import os, sys
import fewbits
assert "transformers" not in sys.modules
exec(os.environ["NETWORK"])
loaded = Net.from_pretrained("someone/net", revision=sys.argv[1], token="secret")
other = fewbits.from_pretrained("someone/net", Net, revision=sys.argv[1], token="secret")
torch.save([loaded.state_dict(), other.state_dict()], sys.argv[2])
try:
    fewbits.from_pretrained("someone/nothing", Net)
except Exception as error:
    print(type(error).__name__)
try:
    fewbits.from_pretrained("someone/bare", Net)
except fewbits.SourceError as error:
    print(error)
"""
PUSH = """
import os, sys, json
exec(os.environ["NETWORK"])
torch.manual_seed(0)
net = Net(160, depth=2).eval()
coded = fewbits.compress(net, "nearest")
print(net.push_to_hub("someone/net", coded, token="secret", metrics={"accuracy": 0.5}))
print(coded.push_to_hub("someone/net", token="secret", revision="lazy", lazy=True))
"""


def test_push_and_pull(net, tmp_path, monkeypatch):
    coded = fewbits.compress(net, "nearest")
    with hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("NETWORK", textwrap.dedent(NETWORK))
        told = run(PUSH).split()
        assert told[0].startswith(f"{server.url}/someone/net/commit/")
        assert set(server.tokens) == {"Bearer secret"}
        branches = server.repositories["someone/net"]
        assert set(branches) == {"main", "lazy"}
        assert set(branches["main"]) == {"README.md", "config.json", "fewbits.safetensors"}
        assert b"| accuracy | 0.5 |" in branches["main"]["README.md"]
        assert b"# net\n" in branches["main"]["README.md"]
        assert json.loads(branches["lazy"]["config.json"])["quantization_config"]["lazy"]
        server.repositories["someone/bare"] = {"main": {}}
        told = run(PULL, "main", tmp_path / "found.pt").splitlines()
        assert told[0] == "RepositoryNotFoundError"
        assert "has no file config.json" in told[1]
        wanted = coded.state_dict()
        for state in torch.load(tmp_path / "found.pt"):
            assert all(torch.equal(state[key], wanted[key]) for key in wanted)
        run(PULL, "lazy", tmp_path / "lazy.pt")


def run(code, *args):
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
