"""Tables that every machine must round alike, and mixing against a slow twin in plain words."""

from decimal import Decimal, localcontext

import numpy as np

from fewbits.coding.mixing import LIMIT, REACH, UNIT, mixer, tables, weight_set


def nearest(value):
    """The integer next to ``value``, and how far ``value`` is from a half."""
    below = value.to_integral_value(rounding="ROUND_FLOOR")
    return int(below) + (value - below > Decimal("0.5")), abs(value - below - Decimal("0.5"))


def test_the_chances_are_logistic_and_none_lies_near_a_half():
    squash = tables().squash
    assert len(squash) == 2 * REACH + 1
    with localcontext() as context:
        context.prec = 30
        for odds in range(-REACH, REACH + 1):
            want, distance = nearest(UNIT / (1 + (Decimal(-odds) / 256).exp()))
            assert squash[odds + REACH] == want
            assert distance > Decimal("1e-6") or odds == 0
    assert (min(squash), max(squash)) == (1, UNIT - 1)


def test_the_logarithms_of_odds_and_none_lies_near_a_half():
    stretch = tables().stretch
    with localcontext() as context:
        context.prec = 30
        logs = [(Decimal(5 * count + 2)).ln() for count in range(LIMIT + 1)]
        for zeros in range(LIMIT + 1):
            for ones in range(LIMIT + 1 - zeros):
                want, distance = nearest(256 * (logs[ones] - logs[zeros]))
                assert stretch[256 * zeros + ones] == want
                assert distance > Decimal("1e-6")


def test_states_count_and_are_halved_when_full():
    for bit, after in enumerate(tables().after):
        for zeros, ones in ((0, 0), (3, 9), (254, 1), (255, 0), (0, 255), (100, 155)):
            want = (zeros + 1 - bit, ones + bit)
            if sum(want) > LIMIT:
                want = tuple((count + 1) // 2 for count in want)
            assert after[256 * zeros + ones] == 256 * want[0] + want[1]


def test_mixing_is_gradient_descent_on_the_coded_bits():
    """In floating point: the same chances but for rounding."""
    rng = np.random.default_rng(0)
    places = [rng.permutation(12) for _ in range(5)]
    chances: list[int] = []

    def take(chance, flag):
        chances.append(chance)
        return flag

    states, weights = [0] * 60, weight_set()
    flag = mixer(states, 3, take)
    counts, mixed = np.zeros((60, 2)), np.full(5, 0.25)
    for number in range(3000):
        spot = int(rng.integers(12))
        cells = [12 * place + int(order[spot]) for place, order in enumerate(places)]
        bit = int(rng.random() < (0.9 if spot % 3 else 0.2))
        x = np.log((counts[cells, 1] + 0.4) / (counts[cells, 0] + 0.4))
        odds = np.clip(mixed @ x, -REACH / 256, REACH / 256)
        assert flag(weights, *cells, bit) == bit
        assert abs(chances[-1] / UNIT - 1 / (1 + np.exp(-odds))) < 0.01
        rate = (3 + 2000 // (100 + min(number, 1023))) / 1024
        mixed += rate * (bit - chances[-1] / UNIT) * x
        counts[cells, bit] += 1
        for cell in cells:
            if counts[cell].sum() > LIMIT:
                counts[cell] = (counts[cell] + 1) // 2
    assert np.abs(np.array(weights[:5]) / 65536 - mixed).max() < 0.02
