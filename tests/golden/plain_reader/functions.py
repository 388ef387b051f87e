"""SPEC.md 4.6: functions of integers that ``mix`` is made of."""

REACH = 3071


def _squash():
    one = power = 2**64
    upper, lower = [], []
    for _ in range(REACH + 1):
        upper.append(min(65535, 2**16 * power // (one + power)))
        lower.append(max(1, 2**80 // (one + power)))
        power = power * 18518942588666869714 >> 64
    return lower[:0:-1] + upper


_SQUASHED = _squash()


def squash(odds):
    """Return 65536 / (1 + exp(-odds / 256))."""
    return _SQUASHED[min(max(odds, -REACH), REACH) + REACH]


def _stretch():
    out, odds = [], -REACH
    for part in range(4096):
        while squash(odds) < 16 * part + 8:
            odds += 1
        out.append(min(max(odds, -2047), 2047))
    return out


_STRETCHED = _stretch()


def stretch(chance):
    """Return the odds of a chance."""
    return _STRETCHED[chance >> 4]


_OCTAVES = [((x + 1) ** 8).bit_length() // 2 for x in range(8192)]


def octaves(size):
    """Return 4 * log2(size + 1), rounded."""
    return _OCTAVES[min(max(size, 0), 8191)]


USUAL = [next(x for x in range(8192) if octaves(x) >= mark) for mark in range(53)]


def clip(x, bound):
    return min(max(x, -bound), bound)
