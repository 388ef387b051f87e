"""Networks that are built without memory and filled tensor by tensor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

import fewbits
from fewbits.container import LazyTensors
from fewbits.engine.network import filling
from fewbits.engine.paged.lazy_weights import LazyWeight
from fewbits.errors import CorruptFileError, ModelError


class Net(nn.Module):
    """Buffers, a tied weight, frozen and ordinary parameters, and an LSTM that lists its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(40, 24)
        self.norm = nn.BatchNorm1d(24)
        self.recur = nn.LSTM(24, 24, batch_first=True)
        self.down = nn.Linear(24, 24)
        self.down.weight.requires_grad = False
        self.head = nn.Linear(24, 40, bias=False)
        self.head.weight = self.embed.weight
        self.head.weight.note = "kept"
        self.register_buffer("scale", torch.full((24,), 2.0))

    def forward(self, ids):
        x = self.norm(self.embed(ids).transpose(1, 2)).transpose(1, 2) * self.scale
        return self.head(self.down(self.recur(x)[0]))


IDS = torch.arange(12).reshape(2, 6)


def meta(build=Net):
    with torch.device("meta"):
        return build().eval()


def saved(tmp_path, build=Net, method=None):
    path = tmp_path / "net.fewbits"
    fewbits.compress(build().eval(), method or fewbits.Nearest(bits=4)).save(path)
    return path


@pytest.mark.parametrize("how", ["file", "memory"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_network_on_meta_is_filled_as_a_real_one(tmp_path, how, dtype):
    path = saved(tmp_path)
    coded = fewbits.CodedModel.load(path)

    def load(network):
        return fewbits.load(path, into=network) if how == "file" else coded.load_into(network)

    real, network = load(Net().to(dtype).eval()), meta().to(dtype)
    assert load(network) is network
    for name, value in real.state_dict().items():
        mine = network.state_dict()[name]
        assert torch.equal(mine, value), name
        assert (mine.dtype, mine.device) == (value.dtype, value.device)
    for name, parameter in real.named_parameters(remove_duplicate=False):
        mine = network.get_parameter(name)
        assert type(mine) is nn.Parameter
        assert mine.requires_grad == parameter.requires_grad
        assert mine.is_leaf
    assert network.head.weight is network.embed.weight
    assert network.embed.weight.note == "kept"
    assert torch.equal(network(IDS), real(IDS))
    network(IDS).sum().backward()
    assert network.embed.weight.grad is not None


def test_loading_in_inference_mode_gives_ordinary_tensors(tmp_path):
    path = saved(tmp_path)
    with torch.inference_mode(), torch.device("meta"):
        network = fewbits.load(path, into=meta())
    assert not any(tensor.is_inference() for tensor in network.state_dict().values())
    network(IDS).sum().backward()


def test_the_layout_in_memory_is_kept(tmp_path):
    build = lambda: nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)  # noqa: E731
    path = saved(tmp_path, build)
    assert fewbits.load(path, into=meta(build)).weight.stride() == build().weight.stride()


def test_a_network_partly_on_meta(tmp_path):
    path, network = saved(tmp_path), Net()
    kept = network.embed.weight
    network.down.to("meta")
    fewbits.load(path, into=network)
    assert network.embed.weight is kept
    assert all(torch.equal(v, network.state_dict()[n]) for n, v in fewbits.load(path).items())


def test_names_tied_in_the_network_or_in_the_file_alone(tmp_path):
    class Apart(Net):
        def __init__(self) -> None:
            super().__init__()
            self.head.weight = nn.Parameter(self.embed.weight.detach().clone() + self.shift)

        shift = 0.0

    class Different(Apart):
        shift = 1.0

    path = saved(tmp_path)
    apart = fewbits.load(path, into=meta(Apart))
    assert torch.equal(apart.head.weight, apart.embed.weight)
    assert apart.head.weight.data_ptr() != apart.embed.weight.data_ptr()
    one = fewbits.load(saved(tmp_path, Apart), into=meta())
    assert one.head.weight is one.embed.weight
    network = meta()
    with pytest.raises(ModelError, match=r"'embed.weight' and 'head.weight' are one"):
        fewbits.load(saved(tmp_path, Different), into=network)
    assert all(tensor.is_meta for tensor in network.state_dict().values())


def test_a_network_in_parallel_on_meta(tmp_path):
    path = saved(tmp_path)
    network = fewbits.load(path, into=nn.DataParallel(meta()))
    assert torch.equal(network.module(IDS), fewbits.load(path, into=Net().eval())(IDS))


def test_layers_become_pairs_in_the_transform_domain(tmp_path):
    build = lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))  # noqa: E731
    torch.manual_seed(0)
    inputs = torch.randn(4, 8)
    path = tmp_path / "net.fewbits"
    fewbits.compress(build(), fewbits.Transform(slope=1e-6), [inputs]).save(path)
    wanted = fewbits.load(path, into=build(), transform_domain=True)(inputs)
    assert torch.equal(fewbits.load(path, into=meta(build), transform_domain=True)(inputs), wanted)


# refusals


class Rotary(Net):
    """Has what no file holds: a buffer outside of the state dict, and a plain tensor."""

    def __init__(self, real: bool = False) -> None:
        super().__init__()
        device = "cpu" if real else None
        self.register_buffer("angles", torch.ones(24, device=device), persistent=False)
        self.first = self.angles[:1]


def test_what_is_not_in_the_file_must_not_be_on_meta(tmp_path):
    path, network = saved(tmp_path, Rotary), meta(Rotary)
    message = (
        "2 tensors of the network.*meta.*: angles, first. Build.*only its parameters are on meta"
    )
    with pytest.raises(ModelError, match=message):
        fewbits.load(path, into=network)
    with pytest.raises(ModelError, match=message):
        fewbits.load(path, into=network, lazy=True)
    assert all(tensor.is_meta for tensor in network.state_dict().values())
    with torch.device("meta"):
        network = Rotary(real=True)
    assert fewbits.load(path, into=network).angles.sum() == 24


def parameters_on_meta(build):
    """Build a network as docs/loading.md says: with only its parameters on meta."""

    def to_meta(module, name, parameter):
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(parameter.to("meta"), parameter.requires_grad)

    hook = register_module_parameter_registration_hook(to_meta)
    try:
        return build().eval()
    finally:
        hook.remove()


def test_only_parameters_on_meta(tmp_path):
    path, network = saved(tmp_path, Rotary), parameters_on_meta(Rotary)
    assert all(parameter.is_meta for parameter in network.parameters())
    fewbits.load(path, into=network)
    assert network.head.weight is network.embed.weight
    assert torch.equal(network(IDS), fewbits.load(path, into=Rotary().eval())(IDS))


@torch.no_grad()
def test_a_llama(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=500,
        tie_word_embeddings=True,
    )

    def build():
        return transformers.LlamaForCausalLM(config).to(torch.bfloat16)

    path = saved(tmp_path, build)
    eager = fewbits.load(path, into=build().eval()).requires_grad_(False)
    filled = fewbits.load(path, into=parameters_on_meta(build)).requires_grad_(False)
    lazy = fewbits.load(path, into=parameters_on_meta(build), lazy=True)
    assert sum(isinstance(weight, LazyWeight) for weight in lazy.parameters()) > 10
    for network in (filled, lazy):
        assert network.lm_head.weight is network.model.embed_tokens.weight
        assert torch.equal(network(IDS).logits, eager(IDS).logits)
    wanted = eager.generate(IDS, max_new_tokens=5, do_sample=False, pad_token_id=0)
    found = lazy.generate(IDS, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(found, wanted)


def test_memory_shared_on_meta_is_not_parted(tmp_path):
    network = meta()
    network.head.weight = nn.Parameter(network.embed.weight.data)
    with pytest.raises(ModelError, match=r"'embed.weight' and 'head.weight' are different tensors"):
        fewbits.load(saved(tmp_path), into=network)


def test_own_ways_of_loading_need_memory(tmp_path):
    network = meta()
    network.register_load_state_dict_post_hook(lambda *_: None)
    with pytest.raises(ModelError, match="on the meta device in a network that has its own way"):
        fewbits.load(saved(tmp_path), into=network)


@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize("where", ["meta", "real", "partly"])
def test_a_failure_leaves_everything_as_it_was(tmp_path, monkeypatch, where, staged):
    """A body that passes its checksum but cannot be decoded shows only when it is decoded."""
    from fewbits.container import reader

    if not staged:
        monkeypatch.setattr(filling, "STAGED_BYTES", 0)
    path = saved(tmp_path)
    network = meta() if where == "meta" else Net()
    if where == "partly":
        network.down.to("meta")
    before = {
        n: (t, None if t.is_meta else t.clone())
        for n, t in network.state_dict(keep_vars=True).items()
    }
    build = reader.build_tensor

    def failing(name, *args):
        if name == "down.bias":
            raise CorruptFileError("cannot be decoded")
        return build(name, *args)

    monkeypatch.setattr(reader, "build_tensor", failing)
    with pytest.raises(CorruptFileError, match="cannot be decoded"):
        fewbits.load(path, into=network)
    for name, tensor in network.state_dict(keep_vars=True).items():
        old, values = before[name]
        assert tensor is old
        assert values is None or torch.equal(tensor, values)


def test_an_attribute_that_refuses_puts_the_others_back(tmp_path):
    class Refusing(nn.Linear):
        def __setattr__(self, name, value):
            if name == "bias" and isinstance(value, nn.Parameter) and not value.is_meta:
                raise TypeError("no")
            super().__setattr__(name, value)

    path = saved(tmp_path, lambda: nn.Linear(4, 4))
    network = meta(lambda: Refusing(4, 4))
    with pytest.raises(TypeError, match="no"):
        fewbits.load(path, into=network)
    assert network.weight.is_meta
    assert network.bias.is_meta


# cost


def decoded_values(monkeypatch):
    """Return a list that grows by the number of symbols of every body that is decoded."""
    from fewbits.container.open_file import OpenFile

    sizes, decode = [], OpenFile.decode

    def watched(opened, span):
        sizes.append(sum(chunk.layout.size for chunk in span.chunks))
        return decode(opened, span)

    monkeypatch.setattr(OpenFile, "decode", watched)
    return sizes


def test_everything_is_decoded_once(tmp_path, monkeypatch):
    path = saved(tmp_path)
    sizes = decoded_values(monkeypatch)
    fewbits.load(path, threads=1)
    plain = sum(sizes)
    for network in (Net(), meta()):
        sizes.clear()
        fewbits.load(path, into=network, threads=1)
        assert sum(sizes) == plain


def test_a_network_above_the_bound_is_verified_first(tmp_path, monkeypatch):
    path, verified = saved(tmp_path), []
    check = LazyTensors.check
    monkeypatch.setattr(LazyTensors, "check", lambda self: (verified.append(1), check(self)))
    fewbits.load(path, into=Net())
    assert not verified
    monkeypatch.setattr(filling, "STAGED_BYTES", 0)
    real = fewbits.load(path, into=Net())
    assert verified
    assert all(torch.equal(v, real.state_dict()[n]) for n, v in fewbits.load(path).items())


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(1500, 1600, bias=False),
        lambda: nn.Embedding(1600, 1500, dtype=torch.bfloat16),
        lambda: nn.ConvTranspose2d(1500, 1500, 1, bias=False),
    ],
)
@pytest.mark.parametrize("method", ["nearest", "keep"])
def test_large_tensors_are_decoded_in_pieces(tmp_path, build, method):
    """Weights of several chunks have the values that they have when decoded as a whole."""
    path = tmp_path / "net.fewbits"
    rule = fewbits.Rule("*", fewbits.Nearest(bits=2) if method == "nearest" else None)
    coded = fewbits.compress(build(), fewbits.Recipe((rule,)))
    coded.save(path, "fast")
    wanted = coded.state_dict()["weight"]
    for threads in (1, 2):
        assert torch.equal(fewbits.load(path, threads=threads)["weight"], wanted)
        assert torch.equal(fewbits.load(path, into=meta(build), threads=threads).weight, wanted)
    lazy = fewbits.load(path, into=meta(build), lazy=True)
    assert torch.equal(lazy.weight, wanted)


MEASURE = """
import sys, torch
from pathlib import Path
from torch import nn
import fewbits

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

path = sys.argv[1]
with torch.device("meta"):
    network = nn.Sequential(*(nn.Linear(3072, 3072, False, dtype=torch.bfloat16) for _ in range(2)))
fewbits.load(Path(path).with_name("warm.fewbits"))
before = peak()
fewbits.load(path, into=network, threads=1)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures in /proc")
@pytest.mark.slow
def test_a_large_weight_takes_its_own_memory_and_little_more(tmp_path):
    torch.manual_seed(0)
    layers = [nn.Linear(3072, 3072, bias=False, dtype=torch.bfloat16) for _ in range(2)]
    for name, network in {"net": nn.Sequential(*layers), "warm": nn.Linear(600, 600)}.items():
        coded = fewbits.compress(network, fewbits.Nearest(bits=2))
        coded.save(tmp_path / f"{name}.fewbits", "fast")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "net.fewbits")]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    values = 2 * 3072**2
    assert 2 * values < int(told) < 2 * values + 64 * 2**20  # whole: 10 bytes more of the one
