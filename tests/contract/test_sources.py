"""What every source of data must do. FEWBITS_SOURCE names one more, such as csv:wine.csv."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from fewbits.errors import SourceError
from fewbits.sources import DATA, DataSource, IndexedSplit, load_data, with_selection

SOURCES = ["digits", "npz:arrays.npz", *filter(None, [os.environ.get("FEWBITS_SOURCE")])]
SPLITS = ("train", "test")


@pytest.fixture(params=SOURCES)
def source(request, tmp_path, monkeypatch):
    if request.param == "npz:arrays.npz":
        rng = np.random.default_rng(0)
        labels = rng.integers(0, 5, 90)
        np.savez(tmp_path / "arrays.npz", x=rng.normal(size=(90, 2, 3)), y=labels)
        monkeypatch.chdir(tmp_path)
    return request.param


def batches(data, split, **settings):
    return list(data.batches(split, **settings))


def samples(found):
    """Return the samples of batches as bytes, in order."""
    pairs = (pair for inputs, labels in found for pair in zip(inputs, labels, strict=True))
    return [x.numpy().tobytes() + y.numpy().tobytes() for x, y in pairs]


def test_what_it_says_of_itself(source):
    data = load_data(source)
    assert isinstance(data, DataSource)
    assert data.source == source
    assert data.preprocessing
    assert [name for name in SPLITS if getattr(data, name)]
    assert DATA[source.partition(":")[0]].__doc__


def test_batches_are_numbers_and_classes(source):
    data = load_data(source)
    for split in SPLITS:
        inputs, labels = batches(data, split, batch_size=7)[0]
        assert inputs.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert len(inputs) == len(labels) == 7
        assert labels.shape == (7,)
        assert inputs.isfinite().all()
        for _, labels in batches(data, split):
            assert labels.min() >= 0
            assert data.classes is None or labels.max() < data.classes


def test_splits_share_nothing_and_are_the_same_every_time(source):
    first, second = load_data(source), load_data(source)
    train, test = (samples(batches(first, split)) for split in SPLITS)
    assert not set(train) & set(test)
    assert [samples(batches(second, split)) for split in SPLITS] == [train, test]
    again = first.batches("train", batch_size=5)
    assert samples(again) == samples(again) == train


def test_a_limit_cuts_and_a_seed_shuffles_or_draws(source):
    data = load_data(source)
    train = samples(batches(data, "train"))
    assert samples(batches(data, "train", batch_size=4, limit=10)) == train[:10]
    if isinstance(data.train, IndexedSplit):
        shuffled = samples(batches(data, "train", seed=3))
        assert shuffled != train
        assert sorted(shuffled) == sorted(train)
        assert samples(batches(data, "train", seed=3)) == shuffled
        assert samples(batches(data, "train", limit=10, seed=3)) == shuffled[:10]


def test_a_selection_can_be_set_apart(source):
    data = load_data(source)
    if isinstance(data.train, IndexedSplit):
        apart = with_selection(data)
        parts = [
            set(samples(batches(apart, name))) for name in ("calibration", "selection", "test")
        ]
        assert all(parts)
        assert not parts[1] & (parts[0] | parts[2])


def test_unknown_options_are_told(source):
    with pytest.raises(SourceError, match="unknown option 'colour'"):
        load_data(f"{source}{'&' if '?' in source else '?'}colour=red")


def test_what_is_not_there_is_a_source_error(source):
    scheme, _, target = source.partition(":")
    if target:
        for wrong in (f"{scheme}:", f"{scheme}:no/such/place"):
            with pytest.raises(SourceError):
                load_data(wrong)
