"""A few hundred cases of each mode of benchmarks/fuzz.py, in this process."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fewbits.coded import Contents, GridTensor, TransformTensor
from fewbits.coding import CODECS
from fewbits.container import decode, encode
from fewbits.errors import CorruptFileError

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
CASES = 300  # of each mode


@pytest.fixture(scope="module")
def cases():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import fuzz_cases
    finally:
        sys.path.remove(str(BENCHMARKS))
    return fuzz_cases


@pytest.fixture(scope="module")
def pool(cases):
    return cases.seeds()


def test_the_seeds_hold_every_codec_and_kind(pool):
    codecs = {number for seed in pool for number in seed.header.get("c", [])}
    assert codecs == {codec.number for codec in CODECS.values()}
    kinds = {type(t).__name__ for seed in pool for t in seed.contents.tensors.values()}
    assert kinds == {f"{kind}Tensor" for kind in ("Affine", "Codebook", "Grid", "Raw", "Transform")}
    assert {seed.minor for seed in pool} == {0, 1}
    assert any(None in seed.bodies for seed in pool)  # chunks that share a body


def test_a_case_can_be_made_again(cases, pool):
    for number in range(30):
        one, again = (cases.make_case(pool, 4, number) for _ in range(2))
        assert (one.data, one.limit) == (again.data, again.limit)
        assert one.seed is again.seed


@pytest.mark.parametrize("mode", ["raw", "header", "streams"])
def test_mutated_files_are_refused_or_consistent(cases, pool, mode):
    first = cases.MODES.index(mode)
    outcomes = Counter()
    for number in range(first, first + 3 * CASES, 3):
        case = cases.make_case(pool, 1, number)
        assert case.mode == mode
        outcomes[cases.judge(case)[0]] += 1
    assert outcomes.total() == CASES
    assert outcomes["refused"] > CASES // 2
    assert bool(outcomes["different"]) == (mode != "raw")


def test_a_reader_that_misses_damage_is_found(cases, pool):
    """The judge itself: other contents than those of the seed are no success in mode raw."""
    one, other = pool[-1], pool[0]
    assert cases.judge(cases.Case(0, "raw", one, one.data, 1 << 26)) == ("same", [])
    with pytest.raises(AssertionError, match="not noticed"):
        cases.judge(cases.Case(0, "raw", one, other.data, 1 << 26))
    assert cases.judge(cases.Case(0, "streams", one, other.data, 1 << 26))[0] == "different"


def test_memory_that_the_reader_hides_is_found(cases, pool, monkeypatch):
    def exhausted(*_):
        raise MemoryError

    monkeypatch.setattr(type(CODECS["raw"]), "decode", exhausted)
    seed = next(seed for seed in pool if seed.name == "grid/raw")
    with pytest.raises(MemoryError, match="hid"):
        cases.judge(cases.Case(0, "streams", seed, seed.data, 1 << 26))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_product_far_larger_than_its_factors_is_refused_before_it_is_made(rank):
    """100 bytes that would ask for terabytes once they are dequantized."""
    size, step = 1 << 20, np.ones(1, np.float32)
    tall = GridTensor((size, rank), "float32", np.ones((size, rank), np.int32), step)
    wide = GridTensor((rank, size), "float32", np.ones((rank, size), np.int32), step)
    data = encode(Contents({"w": TransformTensor((size, size), "float32", wide, tall)}))
    assert len(data) < 200
    with pytest.raises(CorruptFileError, match="more than the limit"):
        decode(data)
    with pytest.raises(CorruptFileError, match="more than the limit"):
        decode(data, max_decoded_bytes=1 << 42)
