"""PWFN on networks: what is clustered, what the file holds, and layers of every kind."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fewbits
from fewbits import PWFN
from fewbits.coded import CodebookTensor, network_values
from fewbits.errors import ConfigError
from fewbits.evaluation.metrics import evaluate
from fewbits.training import CrossEntropy, fit, make_optimizer


class Odd(nn.Module):
    """Grouped, dilated and strided convolutions with biases, and a head of one output."""

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, padding=1, groups=4, padding_mode="circular")
        self.dilated = nn.Conv2d(8, 6, 3, stride=2, dilation=2, padding=2)
        self.wide = nn.Conv1d(6, 6, 3, padding=1, groups=2)
        self.head = nn.Linear(6, 1)

    def forward(self, x):
        x = F.relu(self.dilated(F.relu(self.grouped(x)))).flatten(2)
        return self.head(self.wide(x).mean(2))


class TinyViT(nn.Module):
    """Patches, a class token, positions, attention, two norms and a tied pair of layers."""

    def __init__(self, width=12):
        super().__init__()
        self.patch = nn.Conv2d(1, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 5, width) * 0.02)
        self.kind = nn.Embedding(3, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 3, batch_first=True)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.mixer, self.again = nn.Linear(width, width), nn.Linear(width, width)
        self.again.weight = self.mixer.weight
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        x = x + self.kind(torch.zeros(len(x), 1, dtype=torch.long))
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.again(self.mixer(x))[:, 0])


def steps(net, tuner, x, y, *, count=8, loss=F.cross_entropy):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
    net.train()
    for k in range(count):
        optimizer.zero_grad()
        (loss(net(x), y) + tuner.penalty()).backward()
        optimizer.step()
        tuner.step()
        tuner.advance((k + 1) / count)
    return tuner


@pytest.fixture
def trained(digits_net, digits):
    x, y, _, _ = digits
    tuner = fewbits.prepare(digits_net, PWFN(), raw_dtype="float16")
    steps(digits_net, tuner, x[:64], y[:64])
    return digits_net, tuner


def popcount(code):
    return bin(abs(int(code))).count("1")


def test_the_file_alone_holds_few_values_and_each_tensor_shares_one_codebook(
    trained, digits, tmp_path
):
    net, tuner = trained
    clustered = ["conv1.weight", "conv2.weight", "conv3.weight", "linear.weight", "linear.bias"]
    assert [weight.name for weight in tuner.weights] == clustered
    biggest = max(float(w.parameter.detach().abs().max()) for w in tuner.weights)
    finest, last = tuner.session.finest, tuner.session.rounds[-1]
    coded = tuner.finish()
    coded.save(tmp_path / "net.fewbits")
    state = fewbits.load(tmp_path / "net.fewbits")
    values = torch.cat([state[name].reshape(-1) for name in clustered])
    known, counts = values.unique(return_counts=True)
    assert len(known) == last.values == network_values(coded.tensors).values
    assert int(counts.sum()) == sum(state[name].numel() for name in clustered) == 7386
    codes = known.double() * 2**finest
    assert torch.equal(codes, codes.round())
    assert max(popcount(code) for code in codes) <= 4
    assert float(known.abs().max()) <= biggest
    books = {id(t.codebook) for t in coded.tensors.values() if isinstance(t, CodebookTensor)}
    assert len(books) == 1
    shared = [
        r for r in fewbits.inspect(tmp_path / "net.fewbits").report.rows if r.kind == "shared"
    ]
    assert len(shared) == 1
    assert shared[0].bytes < 40 + 4 * len(known)
    assert torch.equal(state["linear.bias"], net.linear.bias)
    assert coded.tensors["bn1.weight"].stored == "float16"


def test_bytes_are_near_the_entropy(trained):
    _, tuner = trained
    coded = tuner.finish("smallest")
    found, report = network_values(coded.tensors), coded.size_report()
    payload = sum(row.payload for row in report.rows if row.kind == "codebook")
    assert payload <= 1.02 * found.weights * found.entropy / 8 + 4096
    floats = sum(math.prod(t.shape) for t in coded.tensors.values() if t.dtype == "float32")
    ints = sum(8 for t in coded.tensors.values() if t.dtype == "int64")
    assert report.compression_ratio == pytest.approx((4 * floats + ints) / report.file_bytes)


def test_the_score_of_the_last_epoch_is_that_of_the_file(digits_net, digits, tmp_path):
    x, y, test_x, test_y = digits
    batches = [(test_x, test_y)]
    tuner = fewbits.prepare(digits_net, PWFN(fractions=(0.5, 1.0)))
    fitted = fit(
        tuner,
        CrossEntropy(),
        [(x[:64], y[:64])] * 3,
        epochs=2,
        optimizer=make_optimizer(tuner, learning_rate=0.01),
        judge=lambda net: evaluate(net, batches).accuracy,
        logs=(),
    )
    tuner.finish().save(tmp_path / "net.fewbits")
    fresh = type(digits_net)()
    fewbits.load(tmp_path / "net.fewbits", into=fresh)
    assert fitted.epoch == 2
    assert fitted.score == evaluate(fresh, batches).accuracy


def test_the_loop_resumes_to_the_same_bytes(digits_net, digits, tmp_path):
    x, y = digits[:2]
    files = []
    for way in ("whole", "parted"):
        for epochs, resume in [(2, False)] if way == "whole" else [(2, "stop"), (2, True)]:
            net = copy.deepcopy(digits_net)
            tuner = fewbits.prepare(net, PWFN(fractions=(0.4, 0.8, 1.0)), seed=3)

            def loss(model, batch, calls=[], stop=resume == "stop"):  # noqa: B006
                calls.append(1)
                if stop and len(calls) == 5:
                    raise KeyboardInterrupt
                return F.cross_entropy(model(batch[0]), batch[1])

            how = {"folder": tmp_path / way, "resume": resume is True, "logs": ()}
            optimizer = make_optimizer(tuner, learning_rate=0.01)
            try:
                fit(tuner, loss, [(x[:64], y[:64])] * 3, epochs=epochs, optimizer=optimizer, **how)
            except KeyboardInterrupt:
                continue
            files.append(tuner.finish().data)
    assert files[0] == files[1]


def test_every_kind_of_layer_keeps_its_function_and_gets_few_values():
    torch.manual_seed(0)
    net, x = Odd().eval(), torch.randn(6, 4, 9, 9)
    with torch.no_grad():
        net.head.bias.zero_()
        before = net(x)
    tuner = fewbits.prepare(net, PWFN())
    names = [weight.name for weight in tuner.weights]
    assert sorted(names) == sorted(n for n, _ in Odd().named_parameters())
    with torch.no_grad():
        torch.testing.assert_close(net(x), before, rtol=0, atol=1e-6)
    steps(net, tuner, x, torch.ones(6, 1), loss=F.mse_loss)
    assert float(net.head.bias.detach()) != 0.0 or len(tuner.session.rounds) == 10
    coded = tuner.finish()
    assert network_values(coded.tensors).weights == sum(p.numel() for p in net.parameters())
    fresh = coded.load_into(Odd()).eval()
    with torch.no_grad():
        assert torch.equal(fresh(x), net.eval()(x))


def test_a_transformer_keeps_norms_and_embeddings_and_counts_tied_weights_once():
    torch.manual_seed(0)
    net, x, y = TinyViT(), torch.randn(8, 1, 8, 8), torch.arange(8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    tuner = fewbits.prepare(net, PWFN())
    names = {weight.name for weight in tuner.weights}
    left = {"token", "position", "kind.weight"} | {
        f"norm{k}.{leaf}" for k in (1, 2) for leaf in ("weight", "bias")
    }
    assert names == set(before) - left - {"again.weight"}
    assert "embeddings=True" in str(tuner.plan)
    steps(net, tuner, x, y)
    coded = tuner.finish()
    clustered = sum(before[name].numel() for name in names)
    assert network_values(coded.tensors).weights == clustered
    assert coded.contents.aliases == {"again.weight": "mixer.weight"}
    assert net.again.weight is net.mixer.weight
    assert torch.equal(coded.load_into(TinyViT()).eval()(x), net.eval()(x))
    other = fewbits.prepare(TinyViT(), PWFN(embeddings=True))
    assert "kind.weight" in {weight.name for weight in other.weights}
    kept = fewbits.prepare(TinyViT(), PWFN(), keep=["head"])
    assert not {"head.weight", "head.bias"} & {weight.name for weight in kept.weights}


def test_vector_bits_are_refused(digits_net):
    with pytest.raises(ConfigError, match="vector_bits cannot be combined with pwfn"):
        fewbits.prepare(digits_net, PWFN(), vector_bits=6)


def test_weights_that_are_zero_stay_so_and_new_biases_do_not(digits_net, digits):
    x, y, _, _ = digits
    with torch.no_grad():
        digits_net.conv2.weight[:4] = 0
        digits_net.linear.bias.zero_()
    tuner = fewbits.prepare(digits_net, PWFN())
    by_name = {weight.name: weight for weight in tuner.weights}
    assert by_name["conv2.weight"].mask is not None
    assert by_name["linear.bias"].mask is None
    steps(digits_net, tuner, x[:64], y[:64], count=6)
    tuner.finish()
    assert bool((digits_net.conv2.weight[:4] == 0).all())


def test_copies_and_mixed_precision(digits_net, digits):
    x, y, _, _ = digits
    tuner = fewbits.prepare(digits_net, PWFN(growth=3.0))
    digits_net.train()
    copied = copy.deepcopy(digits_net)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(digits_net(x[:8]).float()).all()
    assert not torch.equal(copied.conv1.weight, digits_net.conv1.weight)  # drawn anew
    steps(digits_net, tuner, x[:64], y[:64], count=6)
    tuner.finish()
    assert type(copied.conv1).__name__ != "Conv2d"  # a copy keeps its parametrization
    assert torch.isfinite(copied(x[:8])).all()


def test_the_same_seed_gives_the_same_file(digits_net, digits):
    x, y, _, _ = digits
    files = []
    for seed in (1, 1, 2):
        net = copy.deepcopy(digits_net)
        tuner = fewbits.prepare(net, PWFN(growth=2.0), seed=seed)
        torch.manual_seed(len(files))  # the network's own random numbers are not ours
        files.append(steps(net, tuner, x[:64], y[:64]).finish().data)
    assert files[0] == files[1] != files[2]


def test_a_coded_network_may_be_the_start(digits_net, digits):
    x, y, _, _ = digits
    start = fewbits.compress(digits_net, fewbits.Nearest(bits=6))
    tuner = fewbits.prepare(digits_net, PWFN(fractions=(0.5, 1.0)), start=start)
    steps(digits_net, tuner, x[:64], y[:64], count=4)
    assert network_values(tuner.finish().tensors).values < 200


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_accuracy_and_few_values_on_digits(digits_net, digits, seed):
    """T12 and T13 in small: growth 1.5 a round, 1,000 steps."""
    x, y, test_x, test_y = digits
    before = evaluate(digits_net, [(test_x, test_y)]).accuracy
    once = fewbits.prepare(copy.deepcopy(digits_net), PWFN()).finish()
    tuner = fewbits.prepare(digits_net, PWFN(growth=1.5), seed=seed)
    optimizer = torch.optim.SGD(digits_net.parameters(), lr=0.01, momentum=0.9)
    g, done = torch.Generator().manual_seed(seed), 0
    digits_net.train()
    while done < 1000:
        for rows in torch.randperm(len(x), generator=g).split(64):
            optimizer.zero_grad()
            F.cross_entropy(digits_net(x[rows]), y[rows]).backward()
            optimizer.step()
            tuner.step()
            done += 1
            tuner.advance(min(1.0, done / 1000))
    found = network_values(tuner.finish().tensors)
    assert evaluate(digits_net, [(test_x, test_y)]).accuracy >= before - 0.015
    assert found.values <= 45 < network_values(once.tensors).values
    assert found.entropy <= network_values(once.tensors).entropy - 0.8


@pytest.mark.slow
def test_a_vit_of_transformers_in_the_shape_of_deit_tiny():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=192, num_hidden_layers=2, num_attention_heads=3, intermediate_size=768
    )
    torch.manual_seed(0)
    net = transformers.ViTForImageClassification(config)
    tuner = fewbits.prepare(net, PWFN(fractions=(0.5, 1.0)))
    clustered = {weight.name for weight in tuner.weights}
    left = {n for n, _ in net.named_parameters()} - clustered
    left = {n for n in left if "parametrizations" not in n}
    assert all("norm" in n or "embeddings.cls" in n or "position" in n for n in left)
    x, y = torch.randn(2, 3, 224, 224), torch.tensor([0, 1])
    steps(net, tuner, x, y, count=3, loss=lambda out, target: F.cross_entropy(out.logits, target))
    coded = tuner.finish("fast")
    assert network_values(coded.tensors).weights == sum(
        int(np.prod(coded.tensors[name].shape)) for name in clustered
    )
