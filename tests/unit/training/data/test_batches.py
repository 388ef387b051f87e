"""Shares of a batch: nothing lost, nothing twice, whatever the number of processes."""

from __future__ import annotations

import pytest
import torch

from fewbits.errors import CalibrationError, ConfigError
from fewbits.sources.base.dataset import ArraySplit
from fewbits.training.data.augment import FlipAndCrop
from fewbits.training.data.batches import Sharing, TrainingBatches


def numbered(count):
    return ArraySplit(torch.arange(count, dtype=torch.float32).view(-1, 1), torch.arange(count))


def labels_of_epoch(batches, epoch, skip=0):
    return [torch.cat([micro.batch[1] for micro in step]) for step in batches.epoch(epoch, skip)]


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (2, 1), (1, 4), (2, 2), (4, 1)])
def test_shares_make_up_the_batch(processes, accumulate):
    data = numbered(75)
    whole = labels_of_epoch(TrainingBatches(data, 16, Sharing(), seed=3), 1)
    feeds = [
        TrainingBatches(data, 16, Sharing(p, processes, accumulate), seed=3)
        for p in range(processes)
    ]
    parts = [labels_of_epoch(batches, 1) for batches in feeds]
    assert len(whole) == 4
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[step] for part in parts]), batch)
    weights = [sum(m.weight for m in micros) for batches in feeds for micros in batches.epoch(0)]
    assert weights == pytest.approx([1.0] * len(weights))


@pytest.mark.parametrize("count", [5, 7, 16])
def test_own_batches_of_any_size_are_shared(count):
    loader = [(torch.arange(count).float().view(-1, 1), torch.arange(count))]
    feeds = [TrainingBatches(loader, 1, Sharing(p, 2, 2), seed=0) for p in range(2)]
    steps = [next(iter(batches.epoch(0))) for batches in feeds]
    labels = torch.cat([micro.batch[1] for step in steps for micro in step])
    assert torch.equal(labels, torch.arange(count))
    # The mean over processes of the weighted means is the mean over the samples.
    means = [sum(m.weight * m.batch[0].mean() for m in step) for step in steps]
    assert float(sum(means) / 2) == pytest.approx((count - 1) / 2)


def test_order_depends_on_seed_and_epoch_alone():
    data = numbered(64)
    first = torch.cat(labels_of_epoch(TrainingBatches(data, 16, Sharing(), seed=0), 0))
    assert sorted(first.tolist()) == list(range(64))
    assert torch.equal(
        first, torch.cat(labels_of_epoch(TrainingBatches(data, 16, Sharing(), seed=0), 0))
    )
    for batches, epoch in (
        (TrainingBatches(data, 16, Sharing(), seed=0), 1),
        (TrainingBatches(data, 16, Sharing(), 1), 0),
    ):
        assert not torch.equal(first, torch.cat(labels_of_epoch(batches, epoch)))
    late = torch.cat(labels_of_epoch(TrainingBatches(data, 16, Sharing(), seed=0), 0, skip=2))
    assert torch.equal(late, first[32:])


def test_what_is_left_over_comes_in_another_epoch():
    batches = TrainingBatches(numbered(20), 16, Sharing(), seed=0)
    seen = [set(torch.cat(labels_of_epoch(batches, epoch)).tolist()) for epoch in range(12)]
    assert all(len(labels) == 16 for labels in seen)
    assert set.union(*seen) == set(range(20))


def test_augmentation_does_not_see_the_processes():
    images = torch.rand(32, 1, 8, 8)
    data = ArraySplit(images, torch.arange(32))
    augment = FlipAndCrop(padding=2)

    def inputs(processes, accumulate):
        feeds = [
            TrainingBatches(data, 16, Sharing(p, processes, accumulate), 0, augment)
            for p in range(processes)
        ]
        steps = zip(*(batches.epoch(0) for batches in feeds), strict=True)
        return torch.cat([m.batch[0] for step in steps for micros in step for m in micros])

    assert torch.equal(inputs(1, 1), inputs(2, 2))
    assert not torch.equal(inputs(1, 1), images)


def test_dicts_and_single_tensors_are_shared():
    batches = [{"x": torch.arange(6).view(6, 1), "labels": torch.arange(6), "scale": 2.0}]
    (micros,) = TrainingBatches(batches, 1, Sharing(1, 3), 0).epoch(0)
    assert micros[0].batch["labels"].tolist() == [2, 3]
    assert micros[0].batch["scale"] == 2.0
    (micros,) = TrainingBatches([torch.arange(4.0)], 1, Sharing(0, 2), 0).epoch(0)
    assert micros[0].batch.tolist() == [0, 1]


def test_loaders_without_a_length_are_counted():
    class Stream:
        def __iter__(self):
            yield from (torch.zeros(2, 1) for _ in range(3))

    assert TrainingBatches(Stream(), 1, Sharing(), 0).steps == 3


def test_errors_say_what_to_do():
    with pytest.raises(ConfigError, match="multiple of 6"):
        TrainingBatches(numbered(64), 16, Sharing(0, 3, 2), 0)
    with pytest.raises(CalibrationError, match="Use larger batches"):
        list(TrainingBatches([torch.zeros(1, 2)], 1, Sharing(0, 2), 0).epoch(0))
    lengths = iter([2, 1])

    class Shrinking:
        def __iter__(self):
            return iter([torch.zeros(2, 1)] * next(lengths))

    with pytest.raises(CalibrationError, match="gave 1 batches in epoch 1 and 2 before"):
        list(TrainingBatches(Shrinking(), 1, Sharing(), 0).epoch(0))
    augment = FlipAndCrop()
    with pytest.raises(CalibrationError, match="your own loader"):
        list(TrainingBatches([{"x": torch.zeros(2, 1)}], 1, Sharing(), 0, augment).epoch(0))
