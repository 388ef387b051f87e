"""What symbols tell, and what they would take, without coding them."""

import numpy as np
import pytest

from fewbits.coding import EFFORTS, Layout, encode_symbols, entropy, measure
from fewbits.errors import ConfigError


def _order_0(symbols):
    _, counts = np.unique(symbols, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def markov(size, seed=0):
    """Symbols whose law depends on the two before: (symbols, conditional entropy in bits)."""
    rng = np.random.default_rng(seed)
    law = rng.dirichlet(np.full(4, 0.3), size=(4, 4))
    below = law.cumsum(axis=2).tolist()
    draws = rng.random(size).tolist()
    out, a, b = [], 0, 0
    for draw in draws:
        row = below[a][b]
        a, b = b, next((s for s in range(3) if draw < row[s]), 3)
        out.append(b)
    pairs = np.zeros((16, 16))
    for x in range(4):
        for y in range(4):
            pairs[4 * x + y, 4 * y : 4 * y + 4] = law[x, y]
    share = np.linalg.matrix_power(pairs, 2000)[0]
    information = -(law * np.log2(np.maximum(law, 1e-300))).sum(axis=2).reshape(-1)
    return np.array(out, np.int32).reshape(1, -1), float(share @ information)


def test_entropies_of_a_source_of_order_two():
    symbols, conditional = markov(200_000)
    orders = [entropy(symbols, order) for order in (0, 1, 2, 3)]
    assert orders == sorted(orders, reverse=True)
    assert orders[0] == pytest.approx(_order_0(symbols))
    assert orders[2] == pytest.approx(conditional, rel=0.01)
    assert orders[3] == pytest.approx(conditional, rel=0.01)


def test_entropy_agrees_with_counting_by_hand():
    symbols = np.array([[5, 5, -7, 5], [5, -7, 5, 5]])
    assert entropy(symbols) == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))
    # after 5: 5 -7 5 -7 5, after -7: 5 5
    want = 5 / 7 * -(3 / 5 * np.log2(3 / 5) + 2 / 5 * np.log2(2 / 5))
    assert entropy(symbols, 1) == pytest.approx(want)
    assert entropy(np.array([[3]]), 1) == entropy(np.zeros((0, 3)), 0) == 0.0


@pytest.mark.parametrize("effort", EFFORTS)
@pytest.mark.parametrize("shape", [(64, 64), (300, 90), (17, 405)])
@pytest.mark.parametrize("spread", [0.05, 0.4, 2.0, 60.0])
def test_a_measure_is_what_would_be_written(effort, shape, spread):
    rng = np.random.default_rng(3)
    scale = np.exp(0.5 * rng.normal(size=(shape[0], 1)))
    symbols = np.rint(scale * rng.laplace(0, spread, shape)).astype(np.int32)
    _, data = encode_symbols(symbols, Layout(*shape), effort)
    found = measure(symbols, Layout(*shape), effort) / 8
    assert found == pytest.approx(len(data), rel=0.02, abs=24)


def test_no_effort_measures_more_than_the_one_before():
    symbols = np.rint(np.cumsum(np.random.default_rng(4).normal(size=(40, 90)), 1))
    symbols, layout = symbols.astype(np.int32), Layout(40, 90)
    fast, balanced, smallest = (measure(symbols, layout, effort) for effort in EFFORTS)
    assert smallest <= balanced <= fast
    assert smallest < 0.8 * fast


def test_a_slower_codec_counts_where_it_saves_enough():
    """A hundredth less is worth it to "smallest", not to "balanced"."""
    rng = np.random.default_rng(5)
    layout = Layout(100, 300)
    symbols = np.rint(rng.laplace(0, 2, (100, 300))).astype(np.int32)
    sizes = {effort: len(encode_symbols(symbols, layout, effort)[1]) for effort in EFFORTS}
    found = {effort: measure(symbols, layout, effort) for effort in EFFORTS}
    assert (found["balanced"] == found["fast"]) == (sizes["balanced"] == sizes["fast"])
    assert (found["smallest"] < found["fast"]) == (sizes["smallest"] < sizes["fast"])


def test_measures_of_what_takes_next_to_nothing():
    assert measure(np.zeros((4, 0), np.int32), Layout(4, 0)) == 8
    assert measure(np.full((4, 4), 9, np.int32), Layout(4, 4)) == 8
    with pytest.raises(ConfigError, match="fast, balanced, smallest"):
        measure(np.zeros((2, 2), np.int32), Layout(2, 2), "most")
