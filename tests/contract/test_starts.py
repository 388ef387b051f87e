"""Every method that trains, from every kind of start: what it held is kept, refused or told."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import fewbits
from fewbits import GPFQ, HEMP, PWFN, LowBit, Nearest, Transform
from fewbits.coded import CodebookTensor, GridTensor, RawTensor, TransformTensor
from fewbits.engine.batchnorm.fold import is_batchnorm
from fewbits.errors import ConfigError, LossWarning
from fewbits.methods import training_methods
from fewbits.training import Magnitude

METHODS = {
    "hemp": HEMP(levels=7, rate_weight=0),
    "hemp, refit": HEMP(levels=7, forward="quantized", refit=1),
    "lowbit": LowBit(weights=4, activations=4),
    "lowbit, weights": LowBit(weights=3, activations=32),
    "lowbit, inputs": LowBit(weights=32, activations=8),
    "lowbit, dorefa": LowBit(weights=2, activations=32, quantizer="dorefa"),
    "lowbit, ends": LowBit(weights=4, activations=4, first_last="fp"),
    "pwfn": PWFN(fractions=(1.0,)),
}


def network():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 16, 12),
        nn.ReLU(),
        nn.Linear(12, 4),
    )
    with torch.no_grad():
        net(torch.randn(64, 2, 4, 4))  # statistics
        net[1].weight.uniform_(0.5, 2.0)
        net[1].bias.normal_(0, 0.1)
    return net.eval()


def inputs():
    return torch.randn(64, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def ended(method, net, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuner = fewbits.prepare(net, method, calibration=inputs(), **settings)
        trained(net, tuner)
        return tuner.finish()


def trained(net, tuner):
    optimizer = torch.optim.SGD([*net.parameters(), *tuner.parameters()], lr=0.05)
    for _ in range(2):
        net.train()
        optimizer.zero_grad()
        (net(inputs()).square().mean() + tuner.penalty()).backward()
        optimizer.step()
        tuner.step()
    tuner.advance(1.0)


STARTS = {
    "nearest": lambda net: fewbits.compress(net, Nearest(bits=4)),
    "gpfq": lambda net: fewbits.compress(net, GPFQ(bits=4), inputs()),
    "gpfq, codebook": lambda net: fewbits.compress(net, GPFQ(bits=3, threshold="hard"), inputs()),
    "transform": lambda net: fewbits.compress(net, Transform(side="row", basis="klt"), inputs()),
    "smallest": lambda net: fewbits.compress(net, "smallest", inputs()),
    "activations": lambda net: fewbits.compress(net, GPFQ(bits=4), inputs(), activations=8),
    "16 bits": lambda net: fewbits.compress(
        net, fewbits.Recipe((fewbits.Rule("*", Nearest(bits=4)),), raw_dtype="bfloat16")
    ),
    "pwfn": lambda net: ended(PWFN(fractions=(1.0,)), net),
    "lowbit": lambda net: ended(LowBit(weights=4, activations=4), net),
    "lowbit, fp": lambda net: ended(LowBit(weights=3, activations=4, first_last="fp"), net),
    "hemp": lambda net: ended(HEMP(levels=7), net),
    "hemp, vectors": lambda net: ended(HEMP(levels=7), net, vector_bits=6),
    "pruned": lambda net: ended(HEMP(levels=7), net, prune=Magnitude(share=0.6)),
}


@pytest.fixture(scope="module")
def files(starts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("starts")
    paths = {name: folder / f"{place}.fewbits" for place, name in enumerate(starts)}
    for name, start in starts.items():
        start.save(paths[name], effort="fast")
    return paths


@pytest.fixture(scope="module")
def starts():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: make(network()) for name, make in STARTS.items()}


def test_all_methods_that_train_are_here():
    assert {method.name for method in METHODS.values()} == set(training_methods())


SOON = ("hemp", "lowbit", "pwfn")  # one of every method: its settings matter to training
CASES = [
    pytest.param(method, train, marks=[] if train or method in SOON else pytest.mark.slow)
    for method in METHODS
    for train in (False, True)
]


@pytest.mark.parametrize("kind", STARTS)
@pytest.mark.parametrize(("method", "train"), CASES)
def test_nothing_of_a_start_is_lost_without_a_word(method, kind, train, starts, files):
    start, net = starts[kind], network()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            tuner = fewbits.prepare(net, METHODS[method], start=files[kind], calibration=inputs())
        except ConfigError:
            return  # refused
        if train:
            trained(net, tuner)
        made = tuner.finish()
    noted = " | ".join(made.notes)
    warned = " | ".join(str(w.message) for w in heard)
    for what, words, loud in missing(start.contents, made.contents):
        assert words in noted, (what, noted)
        assert words in warned or not loud, (what, warned)


def missing(start, made):
    """Yield what is gone, words that tell of it, and whether a warning must."""
    pairs = {name: (old, made.tensors[name]) for name, old in start.tensors.items()}
    for name, (old, new) in pairs.items():
        yield from gone(name, old, new)
    coded = [(a, b) for a, b in pairs.values() if not isinstance(a, RawTensor)]
    coded = [(a, b) for a, b in coded if not isinstance(b, RawTensor)]
    groups = {}
    for old, new in coded:
        if isinstance(old, CodebookTensor) and isinstance(new, CodebookTensor):
            groups.setdefault(id(old.codebook), set()).add(new.codebook.values.tobytes())
    if any(len(books) > 1 for books in groups.values()):
        yield "shared codebook", "tensors share has become", True
    before, after = (sum(int((pair[k].dequantize() == 0).sum()) for pair in coded) for k in (0, 1))
    if after < before:
        yield "zeros", "zeros of the start have values", 2 * after < before
    for site in start.activations:
        if site not in made.activations:
            yield f"grid of {site}", "in float from now on", True


def gone(name, old, new):
    if isinstance(old, RawTensor):
        if isinstance(new, RawTensor) and len(new.data) > len(old.data):
            yield f"{old.stored} of {name}", f"stores in {old.stored}", True
    elif isinstance(new, RawTensor):
        yield f"codes of {name}", "in float from now on", True
    elif type(new) is not type(old):
        yield (
            f"{type(old).__name__} of {name}",
            "levels of its own",
            not isinstance(old, GridTensor),
        )
    elif isinstance(old, TransformTensor):
        assert np.array_equal(old.basis.index, new.basis.index)


@pytest.mark.parametrize("kind", ["gpfq, codebook", "transform", "pwfn", "hemp"])
def test_codes_of_what_is_kept_stay(kind, starts):
    net, start = network(), starts[kind]
    coded = [name for name, t in start.tensors.items() if not isinstance(t, RawTensor)]
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    net[8].weight.requires_grad_(True)
    made = fewbits.prepare(net, HEMP(), start=start, keep=["0", "3", "6"]).finish()
    assert [n for n, t in made.tensors.items() if not isinstance(t, RawTensor)] == coded
    books = {id(t.codebook) for t in made.tensors.values() if isinstance(t, CodebookTensor)}
    before = {id(t.codebook) for t in start.tensors.values() if isinstance(t, CodebookTensor)}
    assert len(books) == len(before)


def test_a_shared_codebook_is_refitted_as_one(starts):
    net = network()
    tuner = fewbits.prepare(net, METHODS["hemp, refit"], start=starts["pwfn"])
    trained(net, tuner)
    made = tuner.finish()
    before = [n for n, t in starts["pwfn"].tensors.items() if isinstance(t, CodebookTensor)]
    assert "8.bias" in before  # biases stay on the codebook too
    books = [made.tensors[name].codebook for name in before]
    assert len({id(book) for book in books}) == 1
    assert not np.array_equal(books[0].values, starts["pwfn"].tensors["0.weight"].codebook.values)


def test_absorbed_normalizations_stay_so_or_are_told_of(starts):
    start = starts["smallest"]
    assert any("absorbed" in note for note in start.notes)
    for method in (METHODS["hemp"], METHODS["lowbit"]):
        net = network()
        made = ended(method, net, start=start)
        norm = next(m for m in net.modules() if is_batchnorm(m))
        assert torch.equal(norm.running_mean, torch.zeros(8))
        assert not any("statistics again" in note for note in made.notes)
    made = ended(METHODS["lowbit"], network(), start=start, norms="live")
    assert any("statistics again" in note for note in made.notes)
    with pytest.raises(ConfigError, match="absorbed by the layers before them, first '1'"):
        ended(LowBit(reestimate=True), network(), start=start)


def test_16_bits_and_the_source_go_on(starts):
    net = network()
    made = fewbits.prepare(net, HEMP(), start=starts["16 bits"]).finish()
    assert made.tensors["8.bias"].stored == "bfloat16"
    with pytest.warns(LossWarning, match="raw_dtype='bfloat16' keeps them"):
        fewbits.prepare(network(), HEMP(), start=starts["16 bits"], raw_dtype="keep")
    named = fewbits.compress(network(), Nearest(), source="nets:build")
    assert fewbits.prepare(network(), HEMP(), start=named).finish().contents.metadata["source"]
    given = fewbits.prepare(network(), HEMP(), start=named, source="nets:other").finish()
    assert given.contents.metadata["source"] == "nets:other"


def test_what_a_loaded_network_quantized_is_told_of(starts, tmp_path):
    starts["activations"].save(tmp_path / "net.fewbits")
    net = fewbits.load(tmp_path / "net.fewbits", into=network())
    copied = copy.deepcopy(net)
    with pytest.warns(LossWarning, match="inputs or outputs of layers were quantized"):
        made = fewbits.compress(copied, Nearest(bits=4))
    assert any("float again" in note for note in made.notes)
    with pytest.warns(LossWarning, match="inputs or outputs of layers were quantized"):
        tuner = fewbits.prepare(net, HEMP())
    assert any("grids are dropped" in note for note in tuner.finish().notes)


def test_quantized_inputs_are_named(starts):
    sites = list(starts["lowbit"].contents.activations)
    with pytest.warns(LossWarning) as heard:
        made = fewbits.prepare(network(), HEMP(), start=starts["lowbit"]).finish()
    assert len(heard) == 1
    assert f"{len(sites)} quantized inputs ({', '.join(sites[:4])}" in str(heard[0].message)
    assert heard[0].filename == __file__
    assert any(sites[0] in note for note in made.notes)
