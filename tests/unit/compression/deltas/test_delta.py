"""Deltas: what was new comes back from the base, bit for bit, and from no other one."""

import json
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fewbits
from fewbits.coded import Contents, GridTensor
from fewbits.compression.deltas import differences as parts
from fewbits.compression.deltas.delta import Division
from fewbits.container import encode
from fewbits.container.frame import DELTA_MAGIC, DICTIONARY, FOOTER, MAGIC
from fewbits.container.reader import open_file
from fewbits.engine.layers.pack import torch_dtype
from forging import framed

FLOAT8 = ["float8_e4m3fn", "float8_e5m2"]
DTYPES = ["float64", "float32", "float16", "bfloat16", *FLOAT8]
DTYPES += ["int64", "int32", "int16", "int8", "uint8", "bool", "complex64"]


def bits(tensor):
    return tensor.detach().reshape(-1).view(torch.uint8)


def assert_same(found, wanted):
    assert set(found) == set(wanted)
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(bits(found[name]), bits(tensor)), name


def weights(dtype=torch.bfloat16, seed=0, size=(300, 400)):
    generator = torch.Generator().manual_seed(seed)
    return (0.02 * torch.randn(size, generator=generator)).to(dtype)


def moved(tensor, by=2e-5, seed=1):
    """A step of training: the same size everywhere, of either sign."""
    noise = weights(torch.float32, seed, tensor.shape).sign()
    return (tensor.float() + by * noise).to(tensor.dtype)


def random_bits(dtype, shape, rng):
    size = int(np.prod(shape)) * torch_dtype(dtype).itemsize
    top = 2 if dtype == "bool" else 256
    data = torch.from_numpy(rng.integers(0, top, max(size, 1), dtype=np.uint8))[:size]
    return data.view(torch_dtype(dtype)).reshape(shape)


@settings(max_examples=40, deadline=None)
@given(
    dtypes=st.lists(st.sampled_from(DTYPES), min_size=1, max_size=4),
    shape=st.lists(st.sampled_from([0, 1, 3, 40]), max_size=3).map(tuple),
    share=st.sampled_from([0.0, 0.02, 1.0]),
    block=st.sampled_from([7, 512, 1 << 21]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_change_comes_back(dtypes, shape, share, block, seed):
    """From any bits to any others: NaNs, infinities, both zeros, and what wraps around."""
    rng = np.random.default_rng(seed)
    base = {f"t{k}": random_bits(dtype, shape, rng) for k, dtype in enumerate(dtypes)}
    new = {}
    for name, tensor in base.items():
        other = random_bits(str(tensor.dtype)[6:], shape, rng)
        which = torch.from_numpy(np.asarray(rng.random(shape) < share))
        pair = (bits(other).view(-1, tensor.itemsize), bits(tensor).view(-1, tensor.itemsize))
        mixed = torch.where(which.reshape(-1, 1), *pair) if tensor.numel() else pair[0]
        new[name] = mixed.reshape(-1).view(tensor.dtype).reshape(shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "BLOCK", block)
        data = fewbits.encode_delta(new, base)
        assert_same(fewbits.apply_delta(data, base), new)


@pytest.mark.parametrize(
    ("dtype", "effort"),
    [
        *((dtype, "fast") for dtype in (torch.bfloat16, torch.float16, torch.float32)),
        (torch.bfloat16, "balanced"),
        *(
            pytest.param(dtype, "balanced", marks=pytest.mark.slow)
            for dtype in (torch.float16, torch.float32)
        ),
    ],
)
def test_a_step_of_training_takes_few_bytes(dtype, effort):
    base = {"w": weights(dtype)}
    new = {"w": moved(base["w"])}
    data = fewbits.encode_delta(new, base, effort=effort, threads=1)
    assert_same(fewbits.apply_delta(data, base), new)
    bound = {torch.bfloat16: 0.6, torch.float16: 3.0, torch.float32: 11.0}[dtype]
    assert 8 * len(data) < bound * new["w"].numel()
    assert fewbits.encode_delta(new, base, effort=effort, threads=2) == data


def test_sparse_changes_are_cheap():
    base = {"w": weights()}
    new = {"w": base["w"].clone()}
    place = torch.arange(0, new["w"].numel(), 101)
    new["w"].view(-1)[place] = weights(seed=5).view(-1)[place]
    data = fewbits.encode_delta(new, base)
    assert_same(fewbits.apply_delta(data, base), new)
    assert 8 * len(data) < 26 * place.numel()  # 16 bits of value, and 10 of place


def test_what_did_not_change_takes_nothing_and_is_not_copied():
    base = {f"layer.{k}.weight": weights(seed=k) for k in range(8)}
    new = {name: tensor.clone() for name, tensor in base.items()}
    data = fewbits.encode_delta(new, base)
    assert len(data) < 200
    assert fewbits.apply_delta(data, base)["layer.3.weight"] is base["layer.3.weight"]


def test_tensors_that_come_go_or_change_their_form():
    base = {"a": weights(), "b": weights(seed=2), "c": weights(seed=3), "d": torch.arange(9)}
    new = {
        "a": moved(base["a"]),
        "b": weights(size=(20, 30)),
        "c": base["c"].float(),
        "e": torch.tensor(7),
        "f": torch.where(weights(seed=4) > 0, 0.5, -0.5).bfloat16(),
        "a.rest": weights(size=(4, 4)),
    }
    data = fewbits.encode_delta(new, base)
    assert_same(fewbits.apply_delta(data, base), new)
    assert list(fewbits.apply_delta(data, base)) == list(new)
    assert_same(fewbits.apply_delta(fewbits.encode_delta(base, new), new), base)
    assert_same(fewbits.apply_delta(fewbits.encode_delta({}, base), base), {})
    assert_same(fewbits.apply_delta(fewbits.encode_delta(base, {}), {}), base)


class Tied(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        self.first, self.last = nn.Embedding(30, 20), nn.Linear(20, 30, bias=False)
        self.more = nn.Linear(20, 20)
        torch.nn.init.normal_(self.first.weight, generator=torch.Generator().manual_seed(seed))
        self.last.weight = self.first.weight


@pytest.mark.parametrize("change", ["first", "more"])
def test_tied_weights(change):
    """A base that lists a tied weight once is the same as one that lists it twice."""
    torch.manual_seed(0)
    old, new = Tied(), Tied()
    new.load_state_dict(old.state_dict())
    with torch.no_grad():
        new.get_submodule(change).weight[0, 0] += 1
    data = fewbits.encode_delta(new, old)
    once = {name: value for name, value in old.state_dict().items() if name != "last.weight"}
    for base in (old, old.state_dict(), once):
        found = fewbits.apply_delta(data, base)
        assert_same(found, new.state_dict())
        assert found["last.weight"] is found["first.weight"]
    untied = {name: value.clone() for name, value in old.state_dict().items()}
    with pytest.raises(fewbits.ConfigError, match="other weights"):
        fewbits.apply_delta(data, untied)
    assert_same(fewbits.apply_delta(fewbits.encode_delta(untied, old), old), untied)
    assert_same(fewbits.apply_delta(fewbits.encode_delta(old, untied), untied), old.state_dict())


def test_another_base_is_refused():
    base = {"w": weights(), "b": weights(seed=3, size=(9,))}
    data = fewbits.encode_delta({**base, "w": moved(base["w"])}, base)
    wrong = [
        {"w": base["w"]},
        {**base, "x": base["b"].clone()},
        {**base, "b": -base["b"]},
        {**base, "b": base["b"].float()},
        {**base, "b": base["b"].view(3, 3)},
        {"w": base["w"], "c": base["b"]},
    ]
    for other in wrong:
        with pytest.raises(fewbits.ConfigError, match="base has other weights"):
            fewbits.apply_delta(data, other)
    turned = dict(reversed(base.items()))
    assert torch.equal(fewbits.apply_delta(data, turned)["b"], base["b"])


def test_files_networks_and_bases_on_disk(tmp_path):
    torch.manual_seed(0)
    old, new = nn.Linear(40, 30).bfloat16(), nn.Linear(40, 30).bfloat16()
    with torch.no_grad():
        new.weight.copy_(moved(old.weight))
        new.bias.copy_(old.bias)
    fewbits.compress(old, "lossless").save(tmp_path / "old.fewbits")
    torch.save(old.state_dict(), tmp_path / "old.pt")
    path = tmp_path / "change.fewbits"
    path.write_bytes(fewbits.encode_delta(new, tmp_path / "old.fewbits"))
    for base in (old, old.state_dict(), tmp_path / "old.fewbits", str(tmp_path / "old.pt")):
        assert_same(fewbits.load(path, base=base), new.state_dict())
    into = nn.Linear(40, 30).bfloat16()
    assert fewbits.load(path, into=into, base=old) is into
    assert_same(into.state_dict(), new.state_dict())
    info = fewbits.inspect(path)
    assert info.report.file_bytes == path.stat().st_size
    assert info.metadata["delta"]["differences"] == 1
    with pytest.raises(fewbits.CorruptFileError, match="pass those as base"):
        fewbits.load(path)
    with pytest.raises(fewbits.CorruptFileError, match="needs no base"):
        fewbits.load(tmp_path / "old.fewbits", base=old)
    with pytest.raises(fewbits.ConfigError, match=r"change\.fewbits: base has other weights"):
        fewbits.load(path, base=new)
    for option in ("lazy", "transform_domain"):
        with pytest.raises(fewbits.ConfigError, match=f"{option} must be False with base="):
            fewbits.load(path, into=into, base=old, **{option: True})


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ([1, 2], "state must be a state dict or a network"),
        ({"w": 3}, r"state\['w'\] must be a dense tensor"),
        ({1: torch.ones(2)}, "a name in state must be a string"),
        ({"w": torch.ones(2, device="meta")}, "a tensor with values"),
    ],
)
def test_what_is_no_state_dict_is_refused(state, error):
    with pytest.raises(fewbits.ConfigError, match=error):
        fewbits.encode_delta(state, {})


def test_bases_that_are_none_are_refused(tmp_path):
    with pytest.raises(fewbits.ConfigError, match="base must be a state dict, a network or a path"):
        fewbits.encode_delta({}, 7)
    with pytest.raises(fewbits.SourceError, match="do not exist"):
        fewbits.encode_delta({}, tmp_path / "none.pt")
    with pytest.raises(fewbits.ConfigError, match="effort must be one of"):
        fewbits.encode_delta({"w": weights()}, {}, effort="most")
    with pytest.raises(fewbits.ConfigError, match="data must be the bytes of a delta"):
        fewbits.apply_delta("x", {})


BASE = {"w": weights(size=(9, 30)), "x": torch.arange(40, dtype=torch.int32), "y": torch.ones(3)}
NEW = {"w": weights(seed=9, size=(9, 30)), "x": BASE["x"].flip(0), "z": torch.zeros(2)}
DELTA = fewbits.encode_delta(NEW, BASE)


def test_damage_is_refused():
    for place in range(len(DELTA)):
        broken = bytearray(DELTA)
        broken[place] ^= 1 << place % 8
        for wrong in (bytes(broken), DELTA[:place]):
            with pytest.raises(fewbits.CorruptFileError):
                fewbits.apply_delta(wrong, BASE)
    with pytest.raises(fewbits.CorruptFileError):
        fewbits.apply_delta(DELTA + b"\0", BASE)


def reindexed(delta, change):
    """Return a delta with another index, whose checksums are right."""
    plain = MAGIC + delta[len(MAGIC) :]
    opened = open_file(plain)
    index = json.loads(
        zlib.decompressobj(-15, DICTIONARY).decompress(plain[opened.payload_end : -FOOTER])
    )
    change(index)
    text = json.dumps(index, separators=(",", ":")).encode()
    return DELTA_MAGIC + framed(text, plain[10 : opened.payload_end])[len(MAGIC) :]


def forged(change):
    return reindexed(DELTA, change)


def facts(**changes):
    return lambda index: index["m"]["delta"].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index["m"].clear(),
        lambda index: index["m"]["delta"].pop("base"),
        facts(more=1),
        facts(differences=-1),
        facts(differences=3),
        facts(differences=1.0),
        facts(differences=True),
        facts(removed=3),
        facts(removed=[3]),
        facts(aliases=[]),
        facts(aliases={"q": 3}),
        facts(aliases={"q": "none"}),
        facts(aliases={"w": "x"}),
        lambda index: index["n"].__setitem__(0, "0other"),
        lambda index: index["t"].__setitem__(0, ["g", [27, 10]]),
        lambda index: index["t"].__setitem__(0, ["g", [2, 256], {"o": 2}]),
        lambda index: index["t"].__setitem__(1, ["r", [0], {"d": "int8"}]),
    ],
)
def test_what_does_not_fit_is_refused(change):
    assert_same(fewbits.apply_delta(forged(lambda index: None), BASE), NEW)
    with pytest.raises(fewbits.CorruptFileError):
        fewbits.apply_delta(forged(change), BASE)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_refused(data):
    for attempt in (data, DELTA_MAGIC + data, DELTA[:10] + data + DELTA[-22:]):
        with pytest.raises(fewbits.CorruptFileError):
            fewbits.apply_delta(attempt, BASE)


def test_the_limit_is_that_of_the_base():
    """A delta of next to nothing decodes to as much as the base has."""
    base = {"w": torch.zeros(20_000_000, dtype=torch.int8)}
    new = {"w": base["w"] + 1}
    data = fewbits.encode_delta(new, base, threads=1)
    assert len(data) < 500
    assert_same(fewbits.apply_delta(data, base, threads=1), new)
    with pytest.raises(fewbits.CorruptFileError, match="more than the limit"):
        fewbits.apply_delta(data, base, max_decoded_bytes=10**6)


OLD = {"w": weights(torch.float32, size=(9, 30)), "n": torch.ones(30), "k": torch.arange(4)}


def added_to(index):
    """Return a delta that adds to a tensor, with another index."""
    step = np.full(1, 1e-3, np.float32)
    grid = GridTensor((9, 30), "float32", np.ones((9, 30), np.int32), step)
    facts = Division.of({}, {}).facts(OLD, [], {}, 1)
    contents = Contents({"w": grid}, metadata={"delta": facts}, is_delta=True)
    return reindexed(encode(contents), index)


@pytest.mark.parametrize(
    "change",
    [
        facts(added=0.5),
        facts(added=-1),
        facts(added=2),
        facts(added=True),
        lambda index: index["n"].__setitem__(0, "0other"),
        lambda index: index["n"].__setitem__(0, "0k"),
        lambda index: index["t"].__setitem__(0, ["g", [30, 9]]),
        lambda index: index["t"].__setitem__(0, ["g", [9, 30], {"d": "float16"}]),
        lambda index: index["t"].__setitem__(0, ["g", [270], {"m": [9, 30]}]),
    ],
)
def test_what_cannot_be_added_is_refused(change):
    plain = fewbits.apply_delta(added_to(lambda index: None), OLD)
    assert torch.equal(plain["w"], OLD["w"] + torch.tensor(1e-3))
    with pytest.raises(fewbits.CorruptFileError):
        fewbits.apply_delta(added_to(change), OLD)
