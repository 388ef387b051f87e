"""Networks of sequences: padding, embeddings, and what is tied to them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fewbits
from fewbits.methods import post_training_methods
from fewbits.methods.base import METHODS


class Reader(nn.Module):
    def __init__(self, tied=True, words=40):
        super().__init__()
        self.embed = nn.Embedding(words, 8)
        self.mix = nn.Linear(8, 8)
        self.head = nn.Linear(8, words, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens, attention_mask=None):
        return self.head(torch.tanh(self.mix(self.embed(tokens))))


def reader(tied=True, words=40):
    torch.manual_seed(0)
    return Reader(tied, words).eval()


def tokens(*lengths):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 40, (1, length), generator=generator) for length in lengths]


def padded(sequences):
    length = max(one.shape[1] for one in sequences)
    ids = torch.cat([nn.functional.pad(one, (0, length - one.shape[1])) for one in sequences])
    mask = torch.cat([torch.arange(length)[None] < one.shape[1] for one in sequences])
    return {"tokens": ids, "attention_mask": mask.long()}


SEQUENCES = tokens(17, 30, 24, 9)


def filled(coded, model):
    coded.load_into(model)
    return model


def values(model, method, calibration, **options):
    coded = fewbits.compress(model, method, calibration, **options)
    return filled(coded, copy.deepcopy(model)).state_dict()


@pytest.mark.parametrize("method", [fewbits.GPTQ(bits=3), fewbits.GPFQ(bits=3), fewbits.RDOQ()])
def test_padding_changes_nothing(method):
    alone = [{"tokens": one} for one in SEQUENCES]
    first = values(reader(), method, alone)
    second = values(reader(), method, [padded(SEQUENCES)])
    unmasked = values(reader(), method, [{"tokens": padded(SEQUENCES)["tokens"]}])
    if not isinstance(method, fewbits.RDOQ):  # the probes of other batches draw other signs
        assert torch.allclose(first["mix.weight"], second["mix.weight"])
    assert not torch.equal(second["mix.weight"], unmasked["mix.weight"])


def test_a_mask_of_the_callers_own_is_used():
    batch = padded(SEQUENCES)
    pair = [(batch["tokens"], batch["attention_mask"])]
    options = {"forward": lambda model, one: model(one[0])}
    method = fewbits.GPTQ(bits=3)
    masked = values(reader(), method, pair, mask=lambda one: one[1], **options)
    again = values(reader(), method, [batch])
    assert torch.equal(masked["mix.weight"], again["mix.weight"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", post_training_methods())
def test_every_method_takes_embeddings(name, tied):
    model = reader(tied)
    coded = fewbits.compress(model, METHODS[name](), [{"tokens": one} for one in SEQUENCES])
    loaded = filled(coded, reader(tied))
    if tied:
        assert loaded.head.weight is loaded.embed.weight
    assert torch.isfinite(loaded(SEQUENCES[0])).all()


def output_error(model, loaded):
    with torch.no_grad():
        gaps = [loaded(one) - model(one) for one in SEQUENCES]
        return sum(float(gap.square().sum()) for gap in gaps)


def test_a_tied_embedding_is_calibrated_on_the_inputs_of_the_head():
    model = reader()
    calibration = [{"tokens": one} for one in SEQUENCES]
    recipe = fewbits.Recipe((fewbits.Rule("embed", fewbits.GPTQ(bits=3)),))
    coded = fewbits.compress(model, recipe, calibration)
    assert "gptq" in str(coded.plan).splitlines()[0]
    plain = fewbits.Recipe((fewbits.Rule("embed", fewbits.Nearest(bits=3)),))
    nearest = filled(fewbits.compress(model, plain), reader())
    assert output_error(model, filled(coded, reader())) < output_error(model, nearest)


def test_rate_goes_to_the_rows_of_an_embedding_that_are_used():
    model = reader(tied=False)
    rare = [{"tokens": one.clamp(max=12)} for one in SEQUENCES]
    recipe = fewbits.Recipe((fewbits.Rule("embed", fewbits.RDOQ(slope=2e-4)),))
    loaded = filled(fewbits.compress(model, recipe, rare), reader(tied=False))
    gaps = (loaded.embed.weight - model.embed.weight).square().sum(1)
    assert gaps[2:13].mean() < 0.5 * gaps[13:].mean()


def test_rows_of_a_large_vocabulary_have_steps_of_their_own():
    model = reader(tied=False, words=5000)
    recipe = fewbits.Recipe((fewbits.Rule("embed", fewbits.RDOQ(slope=0.02)),))
    coded = fewbits.compress(model, recipe, [{"tokens": one} for one in SEQUENCES])
    steps = coded.contents.tensors["embed.weight"].step
    assert len(steps) == 5000
    used = torch.cat(SEQUENCES, 1).unique()
    unused = [row for row in range(5000) if row not in used.tolist()]
    assert steps[used.numpy()].mean() < steps[unused].mean()


def test_a_rule_says_how_many_rows_calibrate_its_layers(tmp_path):
    rule = fewbits.Rule("mix", fewbits.GPTQ(bits=3), calibration_rows=5)
    recipe = fewbits.Recipe((rule,))
    assert fewbits.Recipe.from_dict(recipe.to_dict()) == recipe
    calibration = [{"tokens": one} for one in SEQUENCES]
    few = values(reader(), recipe, calibration)
    every = values(
        reader(), fewbits.Recipe((fewbits.Rule("mix", fewbits.GPTQ(bits=3)),)), calibration
    )
    assert not torch.equal(few["mix.weight"], every["mix.weight"])
    with pytest.raises(fewbits.ConfigError, match="calibration_rows"):
        fewbits.Rule("mix", fewbits.GPTQ(), calibration_rows=0)


def test_a_layer_that_few_tokens_reach_says_so():
    model = nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 3))
    plan = fewbits.compress(model, fewbits.GPTQ(), [torch.randn(4, 64)]).plan
    reasons = {entry.target.name: entry.reason for entry in plan.entries}
    assert "few data: 4 rows for 64 inputs" in reasons["0.weight"]
    assert "few data" not in reasons["1.weight"]


def test_experts_in_one_tensor_are_quantized():
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config).eval()
    coded = fewbits.compress(model, fewbits.GPTQ(bits=4), [{"input_ids": SEQUENCES[0]}])
    told = {e.target.name: e for e in coded.plan.entries}
    name = "model.layers.0.mlp.experts.gate_up_proj"
    assert told[name].method.name == "nearest"
    assert "out of sight" in told[name].reason
    gap = filled(coded, copy.deepcopy(model)).get_parameter(name) - model.get_parameter(name)
    assert 0 < gap.norm() < 0.2 * model.get_parameter(name).norm()


def test_a_slope_that_leaves_next_to_nothing_says_so():
    calibration = [{"tokens": one} for one in SEQUENCES]
    bare = fewbits.compress(reader(), fewbits.RDOQ(slope=10.0), calibration)
    assert any("became zero: the slope is too large" in note for note in bare.notes)
    usual = fewbits.compress(reader(), fewbits.RDOQ(slope=1e-4), calibration)
    assert not any("became zero" in note for note in usual.notes)
