"""Values into networks that share memory, that are wrapped, or that load in their own way."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fewbits
from fewbits.errors import ModelError

NEAREST = fewbits.Nearest(bits=4)
INPUTS = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


class Trainer(nn.Module):
    """What trainers make of a network: an attribute called ``model``."""

    def __init__(self) -> None:
        super().__init__()
        self.model = small()

    def forward(self, x):
        return self.model(x)


def compiled():
    return torch.compile(small(), backend="eager")


WRAPPED = {
    "plain": small,
    "parallel": lambda: nn.DataParallel(small()),
    "compiled": compiled,
    "both": lambda: nn.DataParallel(compiled()),
    "trainer": lambda: Trainer().eval(),
}


def filled(coded, tmp_path, network):
    """Return ``network`` with the file's values, checked in every name."""
    path = tmp_path / "net.fewbits"
    coded.save(path)
    loaded = fewbits.load(path, into=network)
    told, own = fewbits.load(path), loaded.state_dict()
    assert set(told) == set(own)
    assert all(torch.equal(told[name].to(own[name].dtype), own[name]) for name in own)
    return loaded


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch.compile reads it
@pytest.mark.parametrize(
    ("wrapped", "into"),
    [
        *((name, "plain") for name in WRAPPED),
        *(("plain", name) for name in WRAPPED if name != "plain"),
        pytest.param("both", "trainer", marks=pytest.mark.slow),  # compiled as with "plain"
        ("parallel", "parallel"),
    ],
)
@torch.no_grad()
def test_a_file_fits_a_network_however_each_is_wrapped(tmp_path, wrapped, into):
    coded = fewbits.compress(WRAPPED[wrapped](), NEAREST, [INPUTS], activations=8)
    coded.save(tmp_path / "net.fewbits")
    wanted = coded.load_into(WRAPPED[wrapped]())(INPUTS)
    assert not torch.equal(wanted, small()(INPUTS))
    assert torch.equal(fewbits.load(tmp_path / "net.fewbits", into=WRAPPED[into]())(INPUTS), wanted)
    assert torch.equal(coded.load_into(WRAPPED[into]())(INPUTS), wanted)


def test_training_starts_from_the_file_of_a_wrapped_network():
    coded = fewbits.compress(nn.DataParallel(small()), fewbits.Nearest(levels=9))
    tuner = fewbits.prepare(small(), fewbits.HEMP(levels=9), start=coded)
    assert [weight.start is not None for weight in tuner.weights] == [True, True]


def test_pairs_in_the_transform_domain_go_by_the_network_s_names(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    method = fewbits.Transform(slope=1e-6, side="row")
    coded = fewbits.compress(nn.DataParallel(network), method, [INPUTS])
    coded.save(tmp_path / "net.fewbits")
    pairs = fewbits.load(tmp_path / "net.fewbits", into=network, transform_domain=True)
    assert isinstance(pairs[0], nn.Sequential)


def test_names_that_fit_no_layer_are_told_as_they_are(tmp_path):
    fewbits.compress(nn.DataParallel(small()), NEAREST).save(tmp_path / "net.fewbits")
    other = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Identity(), nn.Linear(8, 4))
    with pytest.raises(ModelError, match=r"not in the network: module.2.weight.*file: 3.weight"):
        fewbits.load(tmp_path / "net.fewbits", into=other)


# one memory


class Pair(nn.Module):
    """Two layers whose weights are apart, one, or views of one memory."""

    def __init__(self, how: str = "apart") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        if how == "one":
            self.b.weight = nn.Parameter(self.a.weight.data)
        if how == "transposed":
            self.b.weight = nn.Parameter(self.a.weight.data.t())
        if how == "equal":
            self.b.weight.data.copy_(self.a.weight)

    def forward(self, x):
        return self.c(self.b(self.a(x)))


@pytest.mark.parametrize(("how", "into"), [("equal", "one"), ("one", "apart"), ("one", "one")])
def test_equal_values_go_into_one_memory_and_out_of_it(tmp_path, how, into):
    filled(fewbits.compress(Pair(how), NEAREST), tmp_path, Pair(into))


@pytest.mark.parametrize(("how", "into"), [("apart", "one"), ("one", "transposed")])
def test_values_that_differ_do_not_go_into_one_memory(tmp_path, how, into):
    fewbits.compress(Pair(how), NEAREST).save(tmp_path / "net.fewbits")
    network = Pair(into)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ModelError, match=r"'a.weight' and 'b.weight' share memory.*clone"):
        fewbits.load(tmp_path / "net.fewbits", into=network)
    assert all(torch.equal(tensor, before[n]) for n, tensor in network.state_dict().items())


def test_a_transposed_weight_is_refused_where_it_is_coded_and_exact_where_it_is_kept(tmp_path):
    with pytest.raises(ModelError, match=r"'a.weight' and 'b.weight' are different views.*clone"):
        fewbits.compress(Pair("transposed"), NEAREST)
    rules = (fewbits.Rule("*", NEAREST), *(fewbits.Rule(name, None) for name in ("a", "b")))
    recipe = fewbits.Recipe(rules, raw_dtype="float16")
    coded = fewbits.compress(Pair("transposed"), recipe)
    assert coded.tensors["a.weight"].stored == "float32"
    assert coded.tensors["a.bias"].stored == "float16"
    filled(coded, tmp_path, Pair("transposed"))


class Buffered(nn.Module):
    """A layer, and buffers that have their memory from elsewhere."""

    def __init__(self, **buffers) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        for name, make in buffers.items():
            self.register_buffer(name, make(self))

    def forward(self, x):
        return self.head(self.layer(x))


@pytest.mark.parametrize(
    "buffers",
    [
        {"one": lambda net: net.layer.weight.data},
        {"wide": lambda net: torch.ones(1, 8).expand(5, 8)},
        {"windows": lambda net: torch.arange(10.0).unfold(0, 3, 1)},
        {"none": lambda net: torch.ones(0, 3), "also": lambda net: torch.ones(0, 3)},
        {"whole": lambda net: torch.arange(9.0), "part": lambda net: net.whole[2:6]},
        {"phase": lambda net: torch.randn(3, dtype=torch.complex64),
         "back": lambda net: net.phase.conj(), "real": lambda net: torch.view_as_real(net.phase)},
        {"minus": lambda net: torch.randn(3, dtype=torch.complex64).conj().imag},
    ],
    ids="-".join,
)  # fmt: skip
def test_buffers_of_shared_memory_go_through_a_file(tmp_path, buffers):
    coded = fewbits.compress(Buffered(**buffers).eval(), NEAREST, [INPUTS], activations=8)
    filled(coded, tmp_path, Buffered(**buffers).eval())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: net.layer.weight.data[0], r"'layer.weight' and 'view' are different views"),
        (lambda net: net.layer.bias.data[:4], r"'layer.bias' is corrected.*its own memory"),
    ],
)
def test_buffers_that_show_what_is_changed_are_refused(make, message):
    with pytest.raises(ModelError, match=message):
        fewbits.compress(Buffered(view=make).eval(), fewbits.GPFQ(bits=4), [INPUTS])


class Beside(nn.Module):
    """Computes with a buffer that no state dict has, and whose memory is a weight's."""

    def __init__(self, part: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        weight = self.layer.weight.data
        self.register_buffer("used", weight[:4] if part else weight, persistent=False)

    def forward(self, x):
        return self.head(self.layer(x) + x @ self.used.T)


def test_a_buffer_beside_the_state_dict_stays_one_with_its_weight(tmp_path):
    coded = fewbits.compress(Beside().eval(), fewbits.GPFQ(bits=2), [INPUTS], activations=8)
    assert set(coded.state_dict()) == set(Beside().state_dict())
    loaded = filled(coded, tmp_path, Beside().eval())
    assert torch.equal(loaded.used, loaded.layer.weight)
    seen = []
    fewbits.compress(
        Beside().eval(),
        NEAREST,
        [INPUTS],
        lambda model, batch: (
            seen.append(torch.equal(model.used, model.layer.weight)) or model(batch)
        ),
        activations=8,
    )
    assert seen
    assert all(seen)
    with pytest.raises(ModelError, match=r"'layer.weight' and 'used' are different views"):
        fewbits.compress(Beside(part=True), NEAREST)


def test_expanded_weights_are_refused():
    network = small()
    network[0].weight = nn.Parameter(torch.randn(8, 1).expand(8, 8))
    with pytest.raises(ModelError, match=r"'0.weight' is expanded"):
        fewbits.compress(network, NEAREST)


def test_imaginary_parts_and_fractions_are_not_dropped(tmp_path):
    fewbits.compress(Buffered(x=lambda net: torch.ones(3) / 2), NEAREST).save(
        tmp_path / "n.fewbits"
    )
    with pytest.raises(ModelError, match="another kind of values: x"):
        fewbits.load(tmp_path / "n.fewbits", into=Buffered(x=lambda net: torch.zeros(3).int()))


# networks that load in their own way


class Sized(nn.Module):
    """A table that gets its size when it is loaded."""

    def __init__(self, count: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)
        self.register_buffer("table", torch.arange(count))

    def forward(self, x):
        return self.layer(x)


class Replaced(Sized):
    def _load_from_state_dict(self, state, prefix, *others):
        self.table = state[prefix + "table"].clone()
        super()._load_from_state_dict(state, prefix, *others)


class Resized(Sized):
    def __init__(self, count: int = 0) -> None:
        super().__init__(count)
        self._register_load_state_dict_pre_hook(self.resize)

    def resize(self, state, prefix, *others):
        if prefix + "table" in state:
            self.table.resize_(state[prefix + "table"].shape)


class Versioned(nn.Linear):
    """Weights of version 1 are converted, those of version 2 are not."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *others):
        if (metadata.get("version") or 1) < 2:
            state[prefix + "weight"] = state[prefix + "weight"] + 1
        super()._load_from_state_dict(state, prefix, metadata, *others)


class Whole(Sized):
    """Sizes its table in ``load_state_dict`` itself, which takes nothing else."""

    def load_state_dict(self, state):
        self.table = torch.zeros_like(state["table"])
        return super().load_state_dict(state)


def test_a_loader_may_take_the_state_dict_alone(tmp_path):
    fewbits.compress(Whole(7), NEAREST).save(tmp_path / "net.fewbits")
    network = fewbits.load(tmp_path / "net.fewbits", into=Whole())
    assert torch.equal(network.table, torch.arange(7))


@pytest.mark.parametrize("kind", [Replaced, Resized])
@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel])
def test_a_network_gives_its_buffers_their_sizes(tmp_path, kind, wrap):
    fewbits.compress(wrap(kind(7)), NEAREST).save(tmp_path / "net.fewbits")
    network = fewbits.load(tmp_path / "net.fewbits", into=kind())
    assert torch.equal(network.table, torch.arange(7))
    assert torch.equal(
        network.layer.weight, fewbits.load(tmp_path / "net.fewbits", into=kind(3)).layer.weight
    )


def test_a_network_is_told_the_versions_of_its_layers(tmp_path):
    network = nn.Sequential(Versioned(8, 8))
    filled(fewbits.compress(network, NEAREST), tmp_path, nn.Sequential(Versioned(8, 8)))


def test_a_network_whose_own_way_fails_is_put_back(tmp_path):
    class Broken(Resized):
        def __init__(self, count: int = 0) -> None:
            super().__init__(count)
            self.more = nn.Linear(2, 2)
            nn.init.constant_(self.layer.weight, 7)

    fewbits.compress(Resized(7), NEAREST).save(tmp_path / "net.fewbits")
    network = Broken(2)
    table = network.table
    with pytest.raises(ModelError, match=r"(?s)Broken has its own way of loading.*more.weight"):
        fewbits.load(tmp_path / "net.fewbits", into=network)
    assert network.table is table
    assert table.tolist() == [0, 1]
    assert bool((network.layer.weight == 7).all())


# networks whose children have names of wrappers


class Twins(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model, self.module = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.module(self.model(x).relu())


WAYS = (lambda net: net, nn.DataParallel, lambda net: nn.DataParallel(nn.DataParallel(net)))


@pytest.mark.parametrize("wrapped", WAYS)
@pytest.mark.parametrize("into", WAYS)
def test_children_called_model_and_module_are_told_apart(tmp_path, wrapped, into):
    torch.manual_seed(1)
    x = torch.randn(20, 8)
    coded = fewbits.compress(wrapped(Twins()), NEAREST, calibration=[x], activations=4)
    coded.save(tmp_path / "net.fewbits")
    expected = coded.load_into(wrapped(Twins()))(x)
    torch.manual_seed(2)
    network = Twins()
    for parameter in network.parameters():
        nn.init.uniform_(parameter)
    found = fewbits.load(tmp_path / "net.fewbits", into=into(network))
    assert torch.equal(found(x), expected)


# networks built under inference mode


class Own(nn.Linear):
    """Has a loader of its own."""

    def _load_from_state_dict(self, *arguments):
        super()._load_from_state_dict(*arguments)


class Expanded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("row", torch.ones(1, 4).expand(3, 4))


def in_inference(make):
    with torch.inference_mode():
        return make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)),
        lambda: nn.Sequential(Own(8, 8)),
        Expanded,
    ],
)
def test_networks_built_in_inference_mode_are_filled_and_compressed(tmp_path, make):
    network = in_inference(make)
    coded = fewbits.compress(network, NEAREST)
    filled(coded, tmp_path, in_inference(make))
    coded.load_into(in_inference(make))
    assert all(tensor.is_inference() for tensor in network.parameters())


def test_a_network_of_inference_mode_that_refuses_is_put_back(tmp_path):
    class Picky(Own):
        def _load_from_state_dict(self, *arguments):
            super()._load_from_state_dict(*arguments)
            self.register_buffer("seen", torch.ones(3))
            raise ValueError("no")

    fewbits.compress(nn.Linear(8, 8), NEAREST).save(tmp_path / "net.fewbits")
    network = in_inference(lambda: Picky(8, 8))
    before = network.weight.clone()
    with pytest.raises(ModelError, match="failed: ValueError: no"):
        fewbits.load(tmp_path / "net.fewbits", into=network)
    assert torch.equal(network.weight, before)
    assert "seen" not in network._buffers


# integers where there should be weights


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint16, torch.bool])
def test_integers_without_scales_are_no_weights(tmp_path, dtype):
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    values = torch.ones(4, 4).to(dtype)
    network[0].weight = nn.Parameter(values, requires_grad=False)
    fewbits.compress(network, NEAREST).save(tmp_path / "net.fewbits")
    told = str(dtype).removeprefix("torch.")
    with pytest.raises(ModelError, match=rf"0.weight \(file {told}, .*float32.*dequantize"):
        fewbits.load(tmp_path / "net.fewbits", into=nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))


@pytest.mark.filterwarnings("ignore:The .grad attribute")
@torch.no_grad()
def test_a_network_compiled_and_run_before_sees_the_quantized_inputs():
    torch.manual_seed(0)
    x = torch.randn(20, 8)
    coded = fewbits.compress(Twins(), NEAREST, calibration=[x], activations=3)
    expected = coded.load_into(Twins())(x)
    before = torch.compile(Twins(), backend="eager")
    plain = before(x)
    assert torch.equal(coded.load_into(before)(x), expected)
    another = torch.compile(Twins(), backend="eager")
    assert torch.equal(another(x), plain)
    assert torch.equal(coded.load_into(another)(x), expected)
    assert torch.equal(torch.compile(Twins(), backend="eager")(x), plain)
