"""Distinct values of a network, entropies, orders of sums, and the count of shifts and adds."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from fewbits.coded import (
    PICOJOULES,
    Codebook,
    CodebookTensor,
    GridTensor,
    RawTensor,
    Use,
    energy_of,
    network_values,
    terms_of,
)


def slow_terms(k):
    """Nonzero digits of the non-adjacent form, one by one."""
    k, count = abs(int(k)), 0
    while k:
        if k % 2:
            count += 1
            k -= 2 - k % 4
        k //= 2
    return count


def fewest_terms(k, most):
    """The fewest signed powers of two that sum to k, by trying all sums."""
    found = {0}
    for terms in range(most + 1):
        if k in found:
            return terms
        found |= {s + sign * 2**e for s in found for e in range(8) for sign in (-1, 1)}
    return most + 1


def codebook(values, index, shape, **how):
    book = values if isinstance(values, Codebook) else Codebook(np.array(values, np.float32))
    return CodebookTensor(shape, "float32", np.array(index, np.int32), book, **how)


def network(seed=0):
    g = np.random.default_rng(seed)
    book = Codebook(np.array([-1.5, -0.875, -0.25, 0, 0.25, 0.5, 0.875, 1.375], np.float32))
    return {
        "conv.weight": codebook(book, g.integers(0, 8, (6, 4 * 9)), (6, 4, 3, 3)),
        "head.weight": codebook(book, g.integers(1, 6, (5, 6)), (5, 6)),
        "head.bias": codebook(book, g.integers(0, 3, (1, 5)), (5,)),
        "norm.weight": RawTensor((6,), "float32", np.zeros(24, np.uint8)),
    }


def test_terms_are_the_fewest_signed_powers_of_two():
    k = np.arange(1025)
    assert terms_of(k.astype(np.float32)).tolist() == [slow_terms(i) for i in k]
    assert [fewest_terms(i, 4) for i in range(129)] == [slow_terms(i) for i in range(129)]
    scaled = terms_of(np.ldexp(k.astype(np.float32), -140 + k % 200))
    assert scaled[k % 200 > 20].tolist() == [slow_terms(i) for i in k[k % 200 > 20]]
    assert terms_of(np.array([-0.0, -7, 0.1], np.float32)).tolist()[:2] == [0, 2]
    below = np.array([(terms_of(np.arange(1, 129, dtype=np.float32)) <= t).sum() for t in range(5)])
    assert below.tolist() == [0, 8, 44, 104, 128]


def test_values_and_entropies_are_recounted():
    tensors = network()
    weights = np.concatenate(
        [t.dequantize().reshape(-1) for t in tensors.values() if not isinstance(t, RawTensor)]
    )
    counts = Counter(weights.tolist())
    total = sum(counts.values())
    entropy = -sum(n / total * math.log2(n / total) for n in counts.values())
    away = {v: n for v, n in counts.items() if v != 0}
    rest = sum(away.values())
    other = -sum(n / rest * math.log2(n / rest) for n in away.values())
    found = network_values(tensors)
    assert (found.weights, found.values, found.nonzero_values) == (total, len(counts), len(away))
    assert found.entropy == pytest.approx(entropy, rel=1e-9)
    assert found.nonzero_entropy == pytest.approx(other, rel=1e-9)
    assert found.zeros == pytest.approx(counts[0.0] / total)
    by_terms = Counter()
    for value, count in counts.items():
        by_terms[slow_terms(abs(value) * 8)] += count / total
    assert found.terms == pytest.approx([by_terms[t] for t in range(len(found.terms))])
    assert abs(found.entropy / math.log2(math.e) - found.entropy) > 0.1  # bits, not nats


def test_values_of_grids_scales_and_signed_zeros_are_merged():
    step = np.array([0.5, 0.25], np.float32)
    grid = GridTensor((2, 3), "float32", np.array([[-1, 0, 2], [4, 0, -2]], np.int32), step)
    scaled = codebook([-1, 0, 1], [[0, 1, 2]], (1, 3), scale=np.array([-0.5], np.float32))
    found = network_values({"a": grid, "b": scaled})
    assert (found.weights, found.values, found.nonzero_values) == (9, 4, 3)  # 0, 1, 0.5, -0.5
    assert network_values({}).entropy == 0
    assert network_values({"r": network()["norm.weight"]}).weights == 0


def slow_energy(matrix, taps, use):
    """(adds, shift-adds, multipliers, shared) of one matrix (rows, channels * taps)."""
    terms = [[slow_terms(v * 1024) for v in row] for row in matrix]
    flat = [
        (v, t) for row, ts in zip(matrix, terms, strict=True) for v, t in zip(row, ts, strict=True)
    ]
    adds = use.outputs * sum(t > 0 for _, t in flat)
    shift_adds = use.outputs * sum(t for _, t in flat)
    multipliers = len({abs(v) for v, t in flat if t >= 2})
    rows = len(matrix) // use.groups
    shared = set()
    for r, row in enumerate(matrix):
        for c, v in enumerate(row):
            if slow_terms(v * 1024) >= 2:
                shared.add((r // rows, c // taps, abs(v)))
    plain = use.outputs * sum(t >= 2 for _, t in flat)
    return adds, shift_adds, multipliers, min(plain, use.inputs * len(shared))


@pytest.mark.parametrize(("shape", "group"), [((6, 8), 4), ((4, 4, 3), 6), ((4, 4, 3), 4)])
def test_groups_change_no_count_of_energy_but_the_scalings(shape, group):
    index = np.random.default_rng(0).integers(-7, 8, (shape[0], int(np.prod(shape[1:]))))
    index = index.astype(np.int32)
    steps = np.full(index.size // group, 3, np.float32)
    parts = GridTensor(shape, "float32", index.reshape(-1, group), steps)
    assert parts.blocks == index.shape[1] // group
    use = {"w": Use(9, 11, 2)}
    whole = GridTensor(shape, "float32", index, steps[: len(index)])
    one, many = (energy_of({"w": tensor}, {}, use).layers[0] for tensor in (whole, parts))
    assert many.scalings == one.scalings * parts.blocks
    assert replace(many, scalings=one.scalings) == one
    assert np.array_equal(parts.dequantize(), whole.dequantize())


def test_the_energy_table_is_recounted():
    tensors = network()
    uses = {"conv.weight": Use(49, 81, 2), "head.weight": Use(1, 1)}
    stored = {name: 100 + len(name) for name in tensors}
    found = energy_of(tensors, stored, uses)
    assert [layer.name for layer in found.layers] == ["conv.weight", "head.weight"]
    for layer in found.layers:
        tensor, use = tensors[layer.name], uses[layer.name]
        matrix = tensor.codebook.values[tensor.index].tolist()
        taps = 9 if layer.name == "conv.weight" else 1
        told = (layer.adds, layer.shift_adds, layer.multipliers, layer.shared_products)
        assert told == slow_energy(matrix, taps, use)
        assert layer.macs == tensor.index.size * use.outputs >= layer.shared_products
        assert sum(layer.terms) == layer.weights
        assert layer.stored_bits == 8 * stored[layer.name]
        assert layer.scalings == 0
    for name in ("macs", "adds", "shift_adds", "stored_bits"):
        assert found.total(name) == sum(getattr(layer, name) for layer in found.layers)
    ratios, p = found.ratios(), PICOJOULES
    base = found.total("macs") * 4.6 + 32 * found.total("weights") * 20
    ours = found.total("shift_adds") * p["integer add"] + found.total("stored_bits") * 20
    assert ratios["total_dram_integer"] == pytest.approx(ours / base)
    assert ratios["weight_traffic"] == found.total("stored_bits") / (32 * found.total("weights"))
    assert ratios["multiplications"] == 0
    assert found.to_dict()["totals"]["macs"] == found.total("macs")


def test_steps_that_are_no_powers_of_two_leave_products():
    index = np.array([[3, -1, 0], [5, 2, 7]], np.int32)
    one, two = (
        energy_of({"w": GridTensor((2, 3), "float32", index, np.array([s], np.float32))}, {})
        for s in (0.3, 0.25)
    )
    assert (one.layers[0].scalings, two.layers[0].scalings) == (2, 0)
    assert one.layers[0].shift_adds == two.layers[0].shift_adds == 2 + 1 + 0 + 2 + 1 + 2
    assert one.ratios()["multiplications"] == pytest.approx(2 / 6)


def test_without_uses_each_weight_is_used_once_and_biases_are_left_out():
    found = energy_of(network(), {})
    assert [layer.name for layer in found.layers] == ["conv.weight", "head.weight"]
    assert found.total("macs") == found.total("weights")
    assert energy_of({}, {}).ratios()["adds"] == 0
