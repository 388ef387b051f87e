from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from fewbits.engine.layers.rows import conv_rows, conv_transpose_rows, draw_rows


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
