from __future__ import annotations

import torch
from torch import nn

from fewbits.engine.layers.rows import conv_rows, draw_rows


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
