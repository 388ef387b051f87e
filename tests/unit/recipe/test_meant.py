"""Names of other tools are answered with code, and with options, that work."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import fewbits
from cli_runs import run, run_json
from fewbits.recipe.meant import meant

WORDS = {
    "int8": (fewbits.Nearest, 8),
    "INT4": (fewbits.Nearest, 4),
    "uint4": (fewbits.Nearest, 4),
    "8bit": (fewbits.Nearest, 8),
    "4-bit": (fewbits.Nearest, 4),
    "q4_k_m": (fewbits.Nearest, 4),
    "ternary": (fewbits.Nearest, 2),
    "rtn": (fewbits.Nearest, None),
    "gptq4": (fewbits.GPTQ, 4),
    "gptq-4bit": (fewbits.GPTQ, 4),
    "GPTQ": (fewbits.GPTQ, None),
    "gpfq_3": (fewbits.GPFQ, 3),
    "w4a8": (fewbits.GPFQ, 4),
    "rdoq3": (fewbits.RDOQ, None),
}


@pytest.mark.parametrize("word", WORDS)
def test_what_is_suggested_works(word):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    data = [torch.rand(64, 64)]
    with pytest.raises(fewbits.ConfigError) as error:
        fewbits.compress(model, word, data)
    code = re.search(r"Did you mean (fewbits\.compress\(.*\))\?$", str(error.value))[1]
    coded = eval(code, {"fewbits": fewbits, "model": model, "data": data})
    kind, bits = WORDS[word]
    method = coded.plan.entries[0].method
    assert type(method) is kind
    assert bits is None or method.bits == bits
    assert bool(coded.contents.activations) == (word == "w4a8")


@pytest.mark.parametrize(
    "word", ["fp16", "bfloat16", "half", "int16", "1bit", "w1a8", torch.float16]
)
def test_what_cannot_be_done_is_told(word):
    with pytest.raises(fewbits.ConfigError, match=r"2 to 8 bits.*raw_dtype: float16"):
        fewbits.compress(nn.Linear(8, 8), word)


@pytest.mark.parametrize(
    ("value", "told"),
    [(4, r"fewbits\.Nearest\(bits=4\)"), (torch.int8, "bits=8"), (fewbits.GPFQ, r"GPFQ\(\)")],
)
def test_values_that_are_no_methods_are_answered_too(value, told):
    with pytest.raises(fewbits.ConfigError, match=told):
        fewbits.compress(nn.Linear(8, 8), value)


@pytest.mark.parametrize("word", ["awq", "net", "smallesst", "hemp4", "x" * 100, "", True, None])
def test_other_words_mean_nothing(word):
    assert meant(word) is None


@pytest.mark.parametrize("word", ["int8", "gptq4", "w4a8", "rdoq3"])
def test_the_command_line_suggests_its_options(word):
    given = ("compress", "builtin:digits-mlp", "--data", "digits", "-o", "net.fewbits")
    told = " ".join(run(*given, "--method", word, code=2).output.replace("│", " ").split())
    options = re.search(r"Did you mean (--method .*)\?", told)[1].split()
    plan = run_json(*given, *options, "--dry-run")["plan"]
    assert plan["weights"][0]["method"]["method"] == options[1]
