from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fewbits.engine.layers.rows import (
    conv_rows,
    conv_transpose_rows,
    draw_rows,
    feature_rows,
    without_padding,
)


def test_rows_are_drawn_without_replacement_and_by_seed():
    picks = draw_rows(100, 40, seed=3)
    assert len(set(picks.tolist())) == 40
    assert picks.tolist() == sorted(picks.tolist())
    assert torch.equal(picks, draw_rows(100, 40, seed=3))
    assert not torch.equal(picks, draw_rows(100, 40, seed=4))
    assert draw_rows(40, 40, seed=3) is None


def test_every_row_is_drawn_equally_often():
    counts = torch.zeros(20)
    for seed in range(400):
        counts[draw_rows(20, 5, seed)] += 1
    assert counts.min() > 65  # expected 100, standard deviation 8.7
    assert counts.max() < 135


def test_an_input_smaller_than_the_kernel_has_no_rows():
    rows = conv_rows(torch.zeros(2, 3, 2, 2), nn.Conv2d(3, 4, 5))
    assert rows.count == 0
    assert rows.take(None).shape == (1, 0, 75)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, dilation=(1, 2), groups=2),
        nn.Conv2d(4, 4, 5, padding="same", groups=4, padding_mode="reflect"),
        nn.Conv1d(4, 2, 3, padding=1),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
    ],
)
def test_the_block_of_some_samples_holds_their_rows(layer):
    transposed = isinstance(layer, nn.ConvTranspose2d)
    size = (5, 4, 9) if isinstance(layer, nn.Conv1d) else (5, 4, 9, 8)
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))
    rows = conv_transpose_rows(x, layer) if transposed else conv_rows(x, layer)
    every = rows.take(None)
    wanted = every.reshape(len(every), 5, -1, every.shape[2]).permute(1, 0, 3, 2)
    assert torch.equal(rows.by_sample(5, 1, 4), wanted[1:4])
    assert torch.equal(replace(rows, block=None).by_sample(5, 1, 4), wanted[1:4])


MASK = torch.tensor([[True, True, False], [True, False, False]])


@pytest.mark.parametrize(
    "shape", [(2, 3), (3, 2), (6,)], ids=["samples first", "tokens first", "flattened"]
)
def test_rows_of_padding_are_left_out(shape):
    x = torch.arange(6.0).reshape(2, 3, 1)
    given = x.transpose(0, 1) if shape == (3, 2) else x.reshape(*shape, 1)
    rows = without_padding(feature_rows(given), [MASK])
    assert rows.count == 3
    assert sorted(rows.take(None).flatten().tolist()) == [0, 1, 3]
    assert rows.take(torch.tensor([2])).shape == (1, 1, 1)


def test_masks_of_another_sequence_are_ignored():
    rows = feature_rows(torch.zeros(2, 5, 1))
    assert without_padding(rows, [MASK]) is rows
    assert without_padding(rows, []) is rows
    assert without_padding(feature_rows(torch.zeros(2, 3, 1)), [torch.ones_like(MASK)]).count == 6


def test_of_several_masks_that_fit_all_must_keep_a_row():
    rows = feature_rows(torch.zeros(2, 3, 1))
    other = torch.tensor([[False, True, True], [True, True, True]])
    assert without_padding(rows, [MASK, other]).count == 2


def test_positions_of_a_convolution_over_a_sequence_are_left_out():
    x = torch.arange(6.0).reshape(2, 1, 3)
    rows = without_padding(conv_rows(x, nn.Conv1d(1, 1, 3, padding=1)), [MASK])
    assert rows.take(None)[0, :, 1].tolist() == [0, 1, 3]
