"""What orders, chooses or counts by values is noticed; what can move no row is not."""

from __future__ import annotations

import ctypes
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fewbits.engine.graph.data_dependence import Choices
from fewbits.engine.network.isolation import fast_path_off

INPUTS = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
ELSEWHERE = torch.arange(6)
WORKSPACE = torch.zeros(2, 6, 8)  # that only an extension writes


class Net(nn.Module):
    """A layer, and what is done with its output."""

    def __init__(self, act) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.act = nn.Linear(8, 8), act
        self.lstm = nn.LSTM(8, 4, 2, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        self.conv = nn.Sequential(
            *(nn.Conv1d(6, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(2)),
            *(nn.Dropout(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(4, 3)),
        )
        self.register_buffer("places", torch.arange(6).flip(0))
        self.register_buffer("order", torch.arange(6))
        self.table = {"places": torch.arange(6)}
        self.ranks = nn.Parameter(torch.arange(6), requires_grad=False)

    def forward(self, x: Tensor):
        return self.act(self, self.layer(x))


def cause(act, x: Tensor = INPUTS, net: nn.Module | None = None) -> str:
    net = Net(act).eval() if net is None else net
    choices = Choices(net)
    with torch.no_grad(), choices:
        net(x.clone())
    return choices.cause


class Hidden(torch.autograd.Function):
    """An extension: it fills memory, and torch sees nothing of it."""

    @staticmethod
    def forward(ctx, x, out):
        address = WORKSPACE.data_ptr() if out is None else out.untyped_storage().data_ptr()
        ctypes.memset(address, 1, 64)
        return WORKSPACE if out is None else out


class Sorted(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(np.sort(x.numpy()))


def script(code):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(code)


def by_sum(x):
    if bool(x.sum() > 0):
        return x
    return x * 2


scripted = script(by_sum)


@torch.library.custom_op("fewbits_tests::reversed", mutates_args=())
def foreign(x: Tensor) -> Tensor:
    return x.flip(0)


@torch.inference_mode()
def inferred(net, x):
    return x.gather(1, x.argsort(1))


def first_row(x: Tensor) -> Tensor:
    return (x[0, :, 0] > 0).long()


ORDERING = {
    "sort": lambda net, x: x.sort(1).values,
    "msort": lambda net, x: torch.msort(x),
    "argsort": lambda net, x: x.argsort(1),
    "topk": lambda net, x: x.topk(2, 1).values,
    "kthvalue": lambda net, x: x.kthvalue(2, 1).values,
    "median": lambda net, x: x.median(1).values,
    "quantile": lambda net, x: x.quantile(0.5),
    "unique": lambda net, x: torch.unique(x),
    "unique rows": lambda net, x: torch.unique(x, dim=0),
    "unique_consecutive": lambda net, x: torch.unique_consecutive(x),
    "nonzero": lambda net, x: x.nonzero(),
    "where": lambda net, x: torch.where(x > 0),
    "argmax": lambda net, x: x.argmax(-1),
    "argmin": lambda net, x: x.argmin(-1),
    "multinomial": lambda net, x: torch.multinomial(x[0].softmax(-1), 1),
    "bernoulli": lambda net, x: torch.bernoulli(x.sigmoid()),
    "searchsorted": lambda net, x: torch.searchsorted(torch.arange(3.0), x),
    "bucketize": lambda net, x: torch.bucketize(x, torch.arange(3.0)),
    "eigenvalues": lambda net, x: torch.linalg.eigh(x[0].T @ x[0]),
    "sparse": lambda net, x: x.to_sparse(),
    "sampled at": lambda net, x: F.grid_sample(x[None], x[None, :, :4, :2], align_corners=False),
    "vmap": lambda net, x: torch.func.vmap(lambda row: row.argsort(0))(x),
    "inference mode": inferred,
}
INDEXED = {
    "index": lambda net, x: x[:, first_row(x)],
    "mask": lambda net, x: x[x[..., 0] > 0],
    "masked_select": lambda net, x: x.masked_select(x > 0),
    "index_put": lambda net, x: torch.zeros(2, 6, 8).index_put_((x[..., 0] > 0,), x[0, 0]),
    "gather": lambda net, x: x.gather(1, (x > 0).long()),
    "take": lambda net, x: x.take((x > 0).long()),
    "scatter": lambda net, x: torch.zeros(2, 6, 8).scatter(1, (x > 0).long(), x),
    "index_select": lambda net, x: x.index_select(1, first_row(x)),
    "index_add": lambda net, x: x.index_add(1, first_row(x), x),
    "embedding": lambda net, x: F.embedding((x[..., 0] > 0).long(), net.layer.weight),
    "repeat_interleave": lambda net, x: torch.repeat_interleave(x[0], first_row(x), 0),
    "unpooled": lambda net, x: F.max_unpool1d(*F.max_pool1d(x, 2, return_indices=True), 2),
    "gumbel": lambda net, x: F.gumbel_softmax(x, hard=True),
    "one-hot": lambda net, x: F.one_hot(first_row(x), 2),
    "counted": lambda net, x: (x > 0).cumsum(1),
    "row by mask": lambda net, x: x * (x[..., :1] > 0),
    "row of two": lambda net, x: torch.where(x[..., :1] > 0, x, x.flip(1)),
    "hard attention": lambda net, x: (x == x.amax(1, keepdim=True)).float().mT @ x,
    "buffer with values": lambda net, x: x[:, net.order.copy_(first_row(x))],
    "out": lambda net, x: x[:, torch.gt(x[0, :, 0], 0, out=torch.empty(6, dtype=torch.bool))],
}
OUTSIDE = {
    "item": lambda net, x: x * x.sum().item(),
    "if": lambda net, x: x if x.sum() > 0 else -x,
    "comprehension": lambda net, x: [float(value) for value in x[0, 0]],
    "in": lambda net, x: 1.0 in x,
    "slice": lambda net, x: x[:, : int(x.abs().sum()) % 3 + 1],
    "tolist": lambda net, x: x.tolist(),
    "numpy": lambda net, x: x.numpy(),
    "asarray": lambda net, x: np.asarray(x),
    "from_dlpack": lambda net, x: np.from_dlpack(x),
    "data_ptr": lambda net, x: x.data_ptr(),
    "equal": lambda net, x: torch.equal(x, x),
    "allclose": lambda net, x: torch.allclose(x, x),
    "function": lambda net, x: Sorted.apply(x),
    "script": lambda net, x: scripted(x),
    "cond": lambda net, x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,)),
    "foreign": lambda net, x: foreign(x),
    "hidden in zeros": lambda net, x: Hidden.apply(x, torch.zeros(2, 6, 8)) + 1,
    "hidden in empty": lambda net, x: Hidden.apply(x, torch.empty(2, 6, 8)) + 1,
    "hidden elsewhere": lambda net, x: Hidden.apply(x, None) + 1,
}
KINDS = [("ordering", name) for name in ORDERING]
KINDS += [("indexed", name) for name in INDEXED] + [("outside", name) for name in OUTSIDE]


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_what_chooses_by_values_is_noticed(kind, name):
    assert cause({"ordering": ORDERING, "indexed": INDEXED, "outside": OUTSIDE}[kind][name])


def packed(net: Net, x: Tensor) -> Tensor:
    short = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([6, 4]), batch_first=True)
    return nn.utils.rnn.pad_packed_sequence(net.lstm(short)[0], batch_first=True)[0] * 2


def causal(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, is_causal=True)


STAYING = {
    "relu": lambda net, x: x.relu().add_(1),
    "leaky by where": lambda net, x: torch.where(x > 0, x, 0.1 * x),
    "relu by mask": lambda net, x: x * (x > 0),
    "relu by fill": lambda net, x: x.masked_fill(x < 0, 0),
    "softmax": lambda net, x: x.softmax(-1) @ x.mT,
    "largest": lambda net, x: x.max(-1).values + x.amax(-1),
    "pooled": lambda net, x: F.max_pool1d(x, 2) * 2,
    "rolled": lambda net, x: x.roll(1, 1)[:, ::2].flip(1),
    "standardized": lambda net, x: F.layer_norm((x - x.mean()) / x.std(), (8,)),
    "frequencies": lambda net, x: torch.fft.rfft(x).abs(),
    "rounded": lambda net, x: torch.fake_quantize_per_tensor_affine(x.round(), 0.1, 0, -8, 7),
    "resized": lambda net, x: F.interpolate(x, scale_factor=2.0),
    "unfolded": lambda net, x: F.unfold(x[:, None], 3).cumsum(1).logsumexp(1),
    "einsum": lambda net, x: torch.einsum("bij,bkj->bik", x, x),
    "dropout": lambda net, x: F.dropout(x, 0.5, True),
    "index by buffer": lambda net, x: x[:, net.places],
    "index by attribute": lambda net, x: x.gather(1, net.table["places"][None, :, None]),
    "index by parameter": lambda net, x: x[:, net.ranks],
    "index by numbers": lambda net, x: x[:, [2, 1]][:, np.array([1, 0])],
    "index by shape": lambda net, x: x[:, torch.arange(x.shape[1]).flip(0)],
    "index by chance": lambda net, x: x[:, torch.randperm(6)],
    "path by chance": lambda net, x: x if torch.rand(()) > 0.5 else x * 2,
    "path by shape": lambda net, x: x if x.shape[1] > 4 else x.sort().values,
    "path by buffer": lambda net, x: x if net.places.sum() > 0 else -x,
    "mask": lambda net, x: x.masked_fill(torch.ones(6, 8).triu().bool(), -1e9),
    "mask of itself": lambda net, x: torch.ones_like(x[..., 0]).bool()[..., None] * x,
    "table": lambda net, x: net.layer.weight[torch.arange(x.shape[1])] + x,
    "put in place": lambda net, x: torch.zeros(2, 6, 8).index_copy_(1, net.places, x),
    "empty": lambda net, x: x.new_empty(2, 6, 8).copy_(x) + x.new_zeros(8),
    "out": lambda net, x: torch.add(x, x, out=torch.empty(2, 6, 8)) * 2,
    "numbers": lambda net, x: x * torch.tensor(2.0) + torch.as_tensor(np.ones(8, np.float32)),
    "lstm": lambda net, x: net.lstm(x)[0] * 2,
    "packed": packed,
    "attention": lambda net, x: net.attention(x, x, x)[0] * 2,
    "transformer": lambda net, x: net.decoder(net.encoder(x), x) + causal(x),
    "convolutions": lambda net, x: net.conv(x),
    "compiled": lambda net, x: torch.compile(torch.sin, backend="eager")(x),
    "inference mode": torch.inference_mode()(lambda net, x: net.layer(x).view(2, -1)),
}


@pytest.mark.parametrize("name", STAYING)
def test_what_can_move_no_row_is_none(name):
    assert not cause(STAYING[name])


class OfInputs(nn.Module):
    """Everything is chosen by the batch, which is the same in both networks."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.last = nn.Embedding(9, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        if (ids == 0).any():
            x = x * (ids != 0)[..., None].float()
        ends = ids.argmax(-1)
        return self.last(x[torch.arange(len(ids)), ends]) + sum(ids.tolist()[0])


def test_what_the_inputs_choose_is_the_same_in_both_networks():
    ids = torch.randint(9, (4, 6), generator=torch.Generator().manual_seed(0))
    assert not cause(None, ids, OfInputs())


def test_tensors_of_closures_are_constant_if_they_are_read_first():
    assert not cause(None, INPUTS[:, ELSEWHERE], Net(lambda net, x: x))
    assert cause(lambda net, x: x[:, ELSEWHERE])
    net = Net(lambda net, x: x[:, ELSEWHERE])
    net.register_forward_pre_hook(lambda module, args: args[0][:, ELSEWHERE])
    assert not cause(None, INPUTS, net)


def test_compiled_code_is_seen():
    compiled = torch.compile(lambda x: x.gather(1, x.argsort(1)), backend="eager")
    compiled(INPUTS)
    assert cause(lambda net, x: compiled(x)) == "sort"


def test_scripted_modules_cannot_be_seen_into():
    net = nn.Sequential(nn.Linear(8, 8), script(nn.Linear(8, 8)))
    assert cause(None, INPUTS, net) == "a scripted module"


def test_every_pass_is_looked_at_anew():
    net = Net(lambda net, x: x if x.shape[1] > 4 else x.sort(1).values)
    choices, causes = Choices(net), []
    for x in (INPUTS, INPUTS[:, :3], INPUTS):
        with torch.no_grad(), choices:
            net(x)
        causes.append(choices.cause)
    assert causes == ["", "sort", ""]


def test_what_an_earlier_pass_left_behind_is_not_constant():
    def act(net: Net, x: Tensor) -> Tensor:
        before, net.kept = getattr(net, "kept", None), first_row(x)
        return x if before is None else x[:, before]

    net, causes = Net(act), []
    choices = Choices(net)
    for _ in range(2):
        with torch.no_grad(), choices:
            net(INPUTS)
        causes.append(choices.cause)
    assert causes == ["", "a tensor of unknown origin"]


def test_results_are_the_same_and_nothing_is_left_on():
    net = Net(lambda net, x: net.encoder(x)).eval()
    with torch.no_grad(), fast_path_off():
        plain = net(INPUTS)
        with Choices(net):
            watched = net(INPUTS)
    assert torch.equal(plain, watched)
    assert not torch.utils._python_dispatch._get_current_dispatch_mode()
    assert not torch.overrides._get_current_function_mode()
