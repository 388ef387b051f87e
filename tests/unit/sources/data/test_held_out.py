"""Training samples that are held out: never trained on, never the test, always the same."""

from __future__ import annotations

import pytest
import torch

from fewbits.errors import SourceError
from fewbits.sources import ArraySplit, DataSource, StreamSplit, held_out


def labels(split, count=4096):
    return [int(y) for _, ys in split.batches(64, count, None) for y in ys]


def numbered(first, count):
    return ArraySplit(torch.zeros(count, 2), torch.arange(first, first + count))


def test_a_share_is_cut_off_once_and_for_all():
    data = DataSource("x", numbered(0, 100), numbered(1000, 20))
    seen, judged = held_out(data, 0.25)
    assert (len(seen), len(judged)) == (75, 25)
    assert sorted(labels(seen) + labels(judged)) == list(range(100))
    assert labels(held_out(data, 0.25)[1]) == labels(judged)
    assert [len(part) for part in held_out(data, None)] == [90, 10]
    large = DataSource("x", numbered(0, 60_000))
    assert len(held_out(large, 0.5)[1]) == 5000


def test_nothing_is_held_out_where_nothing_is_asked():
    data = DataSource("x", numbered(0, 100), selection=numbered(200, 7))
    assert held_out(data, 0) == (data.train, None)
    assert held_out(data, None) == held_out(data, 0.3) == (data.train, data.selection)


def test_own_loaders_are_not_divided():
    batches = [(torch.zeros(4, 2), torch.arange(4))]
    data = DataSource("x", StreamSplit(lambda: batches))
    assert held_out(data, None) == (data.train, None)
    with pytest.raises(SourceError, match="hold out 0"):
        held_out(data, 0.1)
    with pytest.raises(SourceError, match="no train split"):
        held_out(DataSource("x", test=numbered(0, 5)), None)
