"""Networks whose weights stay in the file: same outputs, bounded memory, no writes."""

from __future__ import annotations

import copy
import functools
import io
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import fewbits
from fewbits.engine.paged import weight_store
from fewbits.engine.paged.lazy_weights import LazyWeight
from fewbits.errors import ConfigError, CorruptFileError, ModelError

OPEN = Path("/proc/self/fd")
WIDE = 160  # its square in float32 is above 64 KiB


class Residual(nn.Module):
    """A tied embedding, attention that reads a weight without calling its layer, and an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(300, WIDE)
        self.attend = nn.MultiheadAttention(WIDE, 4, batch_first=True)
        self.recur = nn.LSTM(WIDE, WIDE, batch_first=True)
        self.norm = nn.LayerNorm(WIDE)
        self.up, self.down = nn.Linear(WIDE, 2 * WIDE), nn.Linear(2 * WIDE, WIDE, bias=False)
        self.head = nn.Linear(WIDE, 300, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        x = x + self.attend(x, x, x, need_weights=False)[0]
        x = x + self.recur(self.norm(x))[0]
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(x)


class Convolutions(nn.Module):
    """Convolutions of every direction, normalization with buffers, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.norm = nn.Conv2d(3, 128, 3, padding=1), nn.BatchNorm2d(128)
        self.two = nn.Conv2d(128, 128, 3, padding=1, groups=2)
        self.three = nn.Conv2d(128, 64, 3, padding=1)
        self.back = nn.ConvTranspose2d(64, 80, 3, stride=2)
        self.out = nn.Linear(80, 10)

    def forward(self, x):
        x = torch.relu(self.two(torch.relu(self.norm(self.one(x)))))
        return self.out(self.back(self.three(x)).mean((2, 3)))


IDS = torch.randint(300, (2, 7), generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NETWORKS = {"residual": (Residual, IDS), "convolutions": (Convolutions, IMAGES)}


NEAREST = fewbits.Nearest(bits=4)


def saved(tmp_path, build=Residual, method=NEAREST, **options):
    path = tmp_path / "net.fewbits"
    if build in (Residual, Convolutions) and method is NEAREST and not options:
        other = path.with_suffix(".new")
        other.write_bytes(file_of(build))
        other.replace(path)  # as save does, which tests rely on
    else:
        fewbits.compress(build().eval(), method, **options).save(path)
    return path


@functools.cache
def file_of(build):
    return fewbits.compress(build().eval(), NEAREST).data


def lazy_ones(network):
    return {n: p for n, p in network.named_parameters() if isinstance(p, LazyWeight)}


def store_of(network):
    return next(iter(lazy_ones(network).values()))._store


def alike_in_gradients(eager, lazy):
    """Make the same parameters need gradients: torch chooses kernels by that."""
    for name, parameter in eager.named_parameters():
        parameter.requires_grad_(lazy.get_parameter(name).requires_grad)


def on_meta(build):
    with torch.device("meta"):
        return build().eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_the_eager_network(tmp_path, name, threads, dtype):
    build, inputs = NETWORKS[name]
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    path = saved(tmp_path, lambda: build().to(dtype))
    eager = fewbits.load(path, into=build().to(dtype).eval())
    for network in (build().to(dtype).eval(), on_meta(lambda: build().to(dtype))):
        lazy = fewbits.load(path, into=network, lazy=True, threads=threads)
        assert lazy is network
        assert len(lazy_ones(lazy)) >= 3
        alike_in_gradients(eager, lazy)
        for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with mode():
                for _ in range(2):
                    assert torch.equal(lazy(inputs), eager(inputs)), mode


@pytest.mark.parametrize(
    "method",
    [
        fewbits.Nearest(levels=9),
        fewbits.Transform(slope=1e-6, side="row", rate="none"),
        fewbits.Nearest(bits=4),
    ],
)
@torch.no_grad()
def test_codebooks_transforms_and_quantized_inputs(tmp_path, method):
    path = saved(tmp_path, Convolutions, method, calibration=[IMAGES], activations=8)
    eager = fewbits.load(path, into=Convolutions().eval())
    lazy = fewbits.load(path, into=on_meta(Convolutions), lazy=True)
    assert lazy_ones(lazy)
    assert torch.equal(lazy(IMAGES), eager(IMAGES))


@torch.no_grad()
def test_values_are_cast_to_the_network_and_laid_out_as_in_it(tmp_path):
    path = saved(tmp_path, Convolutions)
    half = lambda: Convolutions().half().to(memory_format=torch.channels_last).eval()  # noqa: E731
    eager = fewbits.load(path, into=half())
    lazy = fewbits.load(path, into=half(), lazy=True)
    assert (
        lazy.two.weight.stride() == eager.two.weight.stride() != Convolutions().two.weight.stride()
    )
    images = IMAGES.half().to(memory_format=torch.channels_last)
    assert torch.equal(lazy(images), eager(images))


def test_under_autocast(tmp_path):
    path = saved(tmp_path)
    eager = fewbits.load(path, into=Residual().eval())
    lazy = fewbits.load(path, into=on_meta(Residual), lazy=True)
    alike_in_gradients(eager, lazy)
    with torch.autocast("cpu", torch.bfloat16):
        try:
            expected = eager(IDS)
        except RuntimeError as error:
            pytest.skip(f"no LSTM in bfloat16 on this processor: {error}")
        assert torch.equal(lazy(IDS), expected)


# nothing is decoded before it is used


def counted(monkeypatch):
    """Return the list that the name of every weight is added to when it is decoded."""
    made, convert = [], weight_store.WeightSpec.convert

    def watched(spec, values):
        made.append(spec.name)
        return convert(spec, values)

    monkeypatch.setattr(weight_store.WeightSpec, "convert", watched)
    return made


def test_looking_at_a_network_decodes_nothing(tmp_path, monkeypatch):
    lazy = fewbits.load(saved(tmp_path), into=Residual(), lazy=True, threads=1)
    made = counted(monkeypatch)
    state = lazy.state_dict()
    assert "LazyWeight('embed.weight'" in repr(state["embed.weight"])
    assert "Embedding(300" in str(lazy)
    assert lazy.embed.weight.shape == (300, WIDE)
    assert lazy.up.weight.nbytes == 8 * WIDE**2
    assert lazy.up.weight.data.t()[0].detach().shape == (WIDE * 2,)
    assert isinstance(copy.deepcopy(lazy).up.weight, nn.Parameter)
    lazy.train().eval().to(torch.float32).zero_grad()
    assert not made
    lazy(IDS)
    assert sorted(set(made)) == sorted(lazy_ones(lazy))


def test_held_bytes_stay_within_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_store, "HELD_BYTES", 1)
    lazy = fewbits.load(saved(tmp_path), into=Residual().eval(), lazy=True, threads=3)
    store, seen = store_of(lazy), []
    assert store.limit == max(4 * p.numel() for p in lazy_ones(lazy).values())
    for module in lazy.modules():
        module.register_forward_hook(lambda *_: seen.append(store.held_bytes))
    for _ in range(2):
        lazy(IDS)
    assert 0 < max(seen) <= store.limit


def test_a_weight_is_decoded_once_while_there_is_room(tmp_path, monkeypatch):
    lazy = fewbits.load(saved(tmp_path), into=Residual().eval(), lazy=True, threads=2)
    made = counted(monkeypatch)
    lazy(IDS)
    lazy(IDS)
    assert len(made) == len(set(made))


def test_several_threads_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_store, "HELD_BYTES", 1 << 18)
    path = saved(tmp_path)
    eager = fewbits.load(path, into=Residual().eval())
    lazy = fewbits.load(path, into=Residual().eval(), lazy=True, threads=3)
    wrong = []

    def work(seed):
        ids = torch.randint(300, (2, 5), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for _ in range(5):
                if not torch.equal(lazy(ids), eager(ids)):
                    wrong.append(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


# what may be done with such a network


@pytest.mark.parametrize(
    "write",
    [
        lambda w: w.mul_(2),
        lambda w: w.t().zero_(),
        lambda w: w[0].fill_(1),
        lambda w: w.__setitem__(0, 1.0),
        lambda w: w.data.copy_(torch.zeros(w.shape)),
        lambda w: torch.add(torch.zeros(w.shape), 1, out=w),
        lambda w: w.view(-1)[:3].add_(1),
        lambda w: w.split(10)[1].add_(1),
        nn.init.normal_,
    ],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_writing_is_refused_and_changes_nothing(tmp_path, write, mode):
    lazy = fewbits.load(saved(tmp_path), into=Residual(), lazy=True)
    with mode():
        before = lazy.up.weight.clone()
        with pytest.raises(ModelError, match=r"loaded lazily.*Load the network without lazy=True"):
            write(lazy.up.weight)
        assert torch.equal(lazy.up.weight, before)
        assert type(before) is torch.Tensor


def test_lazy_weights_are_frozen_and_other_parameters_train(tmp_path):
    path = saved(tmp_path)
    eager = fewbits.load(path, into=Residual())
    lazy = fewbits.load(path, into=Residual(), lazy=True)
    assert not lazy.up.weight.requires_grad
    assert lazy.up.bias.requires_grad
    with pytest.raises(ModelError, match=r"'embed.weight' was loaded lazily and is frozen"):
        lazy.requires_grad_(True)
    for network in (eager, lazy):
        network(IDS).square().sum().backward()
    assert torch.allclose(lazy.norm.bias.grad, eager.norm.bias.grad, rtol=1e-3)
    assert lazy.up.weight.grad is None


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_cast_gives_an_ordinary_network(tmp_path, name):
    build, inputs = NETWORKS[name]
    path = saved(tmp_path, build)
    eager = fewbits.load(path, into=build().eval()).double().requires_grad_(False)
    lazy = fewbits.load(path, into=build().eval(), lazy=True).double()
    assert not lazy_ones(lazy)
    assert all(type(parameter) is nn.Parameter for parameter in lazy.parameters())
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    assert torch.equal(lazy(inputs), eager(inputs))


@torch.no_grad()
def test_copies_are_lazy_and_saved_ones_are_not(tmp_path):
    path = saved(tmp_path)
    eager = fewbits.load(path, into=Residual().eval())
    lazy = fewbits.load(path, into=Residual().eval(), lazy=True)
    copied = copy.deepcopy(lazy)
    assert copied.embed.weight is copied.head.weight
    assert lazy_ones(copied)
    assert torch.equal(copied(IDS), eager(IDS))
    buffer = io.BytesIO()
    torch.save(lazy.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert {type(value) for value in state.values()} == {torch.Tensor}
    assert all(torch.equal(value, eager.state_dict()[key]) for key, value in state.items())
    pickled = pickle.loads(pickle.dumps(lazy))
    assert type(pickled.up.weight) is nn.Parameter
    assert pickled.embed.weight is pickled.head.weight
    assert torch.equal(pickled(IDS), eager(IDS))


def test_values_are_read_as_arrays_and_lists_and_memory_is_refused(tmp_path):
    path = saved(tmp_path)
    eager = fewbits.load(path, into=Residual())
    weight = fewbits.load(path, into=Residual(), lazy=True).up.weight
    assert (weight.numpy() == eager.up.weight.detach().numpy()).all()
    assert weight[0].tolist() == eager.up.weight[0].tolist()
    assert weight[0, 0].item() == eager.up.weight[0, 0].item()
    for refused in (weight.data_ptr, weight.untyped_storage):
        with pytest.raises(NotImplementedError, match=r"'up.weight' was loaded lazily.*clone"):
            refused()


@pytest.mark.filterwarnings("ignore:TypedStorage")  # safetensors tries it too
def test_what_needs_memory_says_so(tmp_path):
    from safetensors.torch import save

    path = saved(tmp_path)
    lazy = fewbits.load(path, into=Residual(), lazy=True)
    with pytest.raises(NotImplementedError, match=r"loaded lazily.*clone\(\)"):
        save(lazy.state_dict())
    with pytest.raises(ModelError, match=r"weight.*lazily"):
        fewbits.compress(lazy, "nearest")
    assert save({name: value.clone() for name, value in lazy.state_dict().items()})


@torch.no_grad()
def test_a_lazy_network_is_loaded_again(tmp_path):
    path = saved(tmp_path)
    lazy = fewbits.load(path, into=Residual().eval(), lazy=True)
    again = fewbits.load(path, into=lazy, lazy=True)
    eager = fewbits.load(path, into=Residual().eval())
    assert lazy_ones(again)
    assert torch.equal(again(IDS), eager(IDS))
    filled = fewbits.load(path, into=lazy)
    assert not lazy_ones(filled)
    assert filled.embed.weight is filled.head.weight
    assert torch.equal(filled(IDS), eager(IDS))


class Viewed(nn.Module):
    """Weights that share memory with a buffer that no file has."""

    def __init__(self, how: str = "views") -> None:
        super().__init__()
        self.layer, self.free = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE)
        first = self.layer.weight.data[0]
        self.register_buffer("first", first if how == "views" else None, persistent=False)

    def forward(self, x):
        return self.free(self.layer(x)) + self.first


@torch.no_grad()
def test_weights_that_share_memory_are_not_lazy(tmp_path):
    path = saved(tmp_path, lambda: Viewed("apart"))
    lazy = fewbits.load(path, into=Viewed(), lazy=True)
    assert list(lazy_ones(lazy)) == ["free.weight"]
    inputs = torch.ones(2, WIDE)
    assert torch.equal(lazy(inputs), fewbits.load(path, into=Viewed())(inputs))


# refusals


def test_what_cannot_be_lazy(tmp_path):
    path = saved(tmp_path)
    with pytest.raises(ConfigError, match="lazy must be False without into="):
        fewbits.load(path, lazy=True)
    with pytest.raises(ConfigError, match="transform_domain must be False with lazy=True"):
        fewbits.load(path, into=Residual(), lazy=True, transform_domain=True)
    with pytest.raises(ConfigError, match=r"torch.nn.Module. Got int"):
        fewbits.load(path, into=3, lazy=True)
    with pytest.raises(ModelError, match="another architecture"):
        fewbits.load(path, into=Convolutions(), lazy=True)
    own = Residual()
    own.register_load_state_dict_post_hook(lambda *_: None)
    with pytest.raises(ModelError, match=r"own way of loading.*without lazy=True"):
        fewbits.load(path, into=own, lazy=True)
    assert not lazy_ones(own)


@pytest.mark.filterwarnings("ignore:Dynamo detected")
def test_compiling_is_refused(tmp_path):
    lazy = fewbits.load(saved(tmp_path, lambda: Viewed("apart")), into=Viewed(), lazy=True)
    with pytest.raises(ModelError, match="loaded lazily cannot be compiled"):
        torch.compile(lazy, backend="eager")(torch.ones(2, WIDE))


def test_a_damaged_file_is_refused_before_anything_is_changed(tmp_path):
    path = saved(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    network = Residual()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CorruptFileError, match="checksum"):
        fewbits.load(path, into=network, lazy=True)
    assert all(torch.equal(value, before[n]) for n, value in network.state_dict().items())
    assert not lazy_ones(network)


@pytest.mark.parametrize("how", ["truncated", "overwritten"])
def test_a_file_changed_in_place_is_told(tmp_path, how):
    path = saved(tmp_path)
    lazy = fewbits.load(path, into=Residual(), lazy=True)
    with path.open("r+b") as file:
        if how == "truncated":
            file.truncate(100)
        else:
            file.write(b"x" * 100)
    os.utime(path, ns=(1, 1))  # whatever the clock's resolution
    with pytest.raises(CorruptFileError, match=r"net.fewbits.*loaded lazily.*was changed after"):
        lazy(IDS)


@pytest.mark.skipif(sys.platform == "win32", reason="open files cannot be replaced")
@torch.no_grad()
def test_a_file_may_be_replaced_or_removed(tmp_path):
    path = saved(tmp_path)
    wanted = fewbits.load(path, into=Residual().eval())(IDS)
    lazy = fewbits.load(path, into=Residual().eval(), lazy=True)
    saved(tmp_path, Convolutions)
    assert torch.equal(lazy(IDS), wanted)
    path.unlink()
    assert torch.equal(copy.deepcopy(lazy)(IDS), wanted)


@pytest.mark.skipif(not OPEN.is_dir(), reason="looks in /proc")
def test_the_file_is_closed_with_the_network(tmp_path):
    def count():
        return sum(link.resolve() == path for link in OPEN.iterdir())

    path = saved(tmp_path).resolve()
    lazy = fewbits.load(path, into=Residual(), lazy=True)
    lazy(IDS)
    assert count() == 1
    del lazy
    assert count() == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12, for its threads
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_decodes_for_itself(tmp_path):
    lazy = fewbits.load(saved(tmp_path), into=Residual().eval(), lazy=True, threads=2)
    wanted = lazy(IDS)
    child = os.fork()
    if not child:
        code = 1
        try:
            code = int(not torch.equal(lazy(IDS), wanted))
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


MEASURE = """
import sys, torch
from pathlib import Path
from torch import nn
import fewbits

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024

torch.set_num_threads(1)
how, path = sys.argv[1:]
with torch.device("meta"):
    layers = [nn.Linear(1024, 1024, bias=False, dtype=torch.bfloat16) for _ in range(56)]
    network = nn.Sequential(*layers).requires_grad_(False)
warm = nn.Linear(1024, 1024, bias=False, dtype=torch.bfloat16)
warm = fewbits.load(Path(path).with_name("warm.fewbits"), into=warm, lazy=True, threads=1)
warm(torch.ones(1, 1024, dtype=torch.bfloat16))  # torch imports what it needs for lazy weights
before = peak()
network = fewbits.load(path, into=network, lazy=how == "lazy", threads=1)
total = network(torch.ones(1, 1024, dtype=torch.bfloat16)).double().sum().item()
print(peak() - before, total)
"""


@pytest.mark.skipif(not OPEN.is_dir(), reason="measures in /proc")
@pytest.mark.slow
def test_a_network_takes_less_memory_than_its_weights(tmp_path):
    torch.manual_seed(0)
    layers = [nn.Linear(1024, 1024, bias=False, dtype=torch.bfloat16) for _ in range(56)]
    for name, network in {"net": nn.Sequential(*layers), "warm": layers[0]}.items():
        coded = fewbits.compress(network, fewbits.Nearest(bits=4))
        coded.save(tmp_path / f"{name}.fewbits", "fast")
    peak, outputs = {}, {}
    for how in ("eager", "lazy"):
        command = [sys.executable, "-c", MEASURE, how, str(tmp_path / "net.fewbits")]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        more, outputs[how] = told.split()
        peak[how] = int(more)
    assert outputs["lazy"] == outputs["eager"]
    weights = 2 * 56 * 1024**2
    assert 0.95 * weights < peak["eager"] < 1.6 * weights, peak
    assert peak["lazy"] < 0.6 * weights, peak
