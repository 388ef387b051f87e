"""A position gives the same seed for ever."""

from fewbits.ops.seeds import seed_at


def test_a_position_gives_the_same_seed_for_ever():
    assert seed_at(0, 1, 2) == 1535930435702422785
    assert len({seed_at(a, b) for a in range(20) for b in range(20)}) == 400
    assert 0 <= seed_at(2**63 - 1, 5) < 2**63
