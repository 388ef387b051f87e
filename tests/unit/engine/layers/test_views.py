"""Every layer kind: its matrix times its rows is its output (acceptance test A13)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewbits.engine.layers.views import KINDS, kind_of
from fewbits.engine.network.batches import Call

LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (3, 6)),
    "linear on 4-D": (lambda: nn.Linear(6, 4), (2, 3, 5, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3), (2, 4, 7, 8)),
    "conv2d stride dilation": (lambda: nn.Conv2d(4, 6, 3, 2, 1, dilation=2), (2, 4, 9, 8)),
    "conv2d kernel > stride": (lambda: nn.Conv2d(4, 6, (3, 2), (2, 3)), (2, 4, 9, 8)),
    "conv2d groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 5, 5)),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 5, 5)),
    "conv2d same": (lambda: nn.Conv2d(4, 6, 4, padding="same", dilation=2), (2, 4, 9, 9)),
    "conv2d valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 9, 9)),
    "conv2d reflect": (
        lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"),
        (2, 4, 6, 7),
    ),
    "conv2d circular": (
        lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular"),
        (2, 4, 6, 7),
    ),
    "conv2d unbatched": (lambda: nn.Conv2d(4, 6, 3, padding=1), (4, 6, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 4, (1, 3, 2), (1, 2, 1), 1, groups=2), (2, 2, 4, 5, 6)),
    "conv_transpose1d": (
        lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1),
        (2, 4, 5),
    ),
    "conv_transpose2d": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 4), (2, 3), (1, 0), groups=2),
        (2, 4, 5, 4),
    ),
    "conv_transpose2d crop": (
        lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, padding=2, dilation=1),
        (2, 4, 5, 6),
    ),
    "conv_transpose3d": (
        lambda: nn.ConvTranspose3d(2, 3, 3, stride=2, padding=1, dilation=2),
        (1, 2, 3, 3, 3),
    ),
}


def views_of(layer):
    return kind_of(layer).views(layer)


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_matrix_is_the_layers_output(name):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make().double()
    x = torch.randn(shape, dtype=torch.float64)
    (view,) = views_of(layer)
    rows = view.inputs(Call((x,), {}))
    gathered = rows.take(None)
    with torch.no_grad():
        output = layer(x) - layer(torch.zeros_like(x))  # without the bias
        matrix = view.matrix(layer.weight)
        made = gathered @ matrix.transpose(1, 2)  # (groups, m, neurons)
    if isinstance(layer, nn.Linear):
        expected = output.reshape(1, -1, output.shape[-1])
    else:
        output = output.unsqueeze(0) if x.dim() == layer.weight.dim() - 1 else output
        flat = output.movedim(1, -1).reshape(rows.count, view.groups, -1)
        expected = flat.transpose(0, 1)
    torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-10)
    picks = torch.arange(0, rows.count, 3)
    torch.testing.assert_close(rows.take(picks), gathered[:, picks], rtol=0, atol=0)


@pytest.mark.parametrize("name", LAYERS)
def test_matrix_and_tensor_are_inverse(name):
    layer = LAYERS[name][0]()
    (view,) = views_of(layer)
    matrix = view.matrix(layer.weight)
    assert matrix.shape[0] * matrix.shape[1] == view.rows
    assert matrix.shape[2] == view.columns(tuple(layer.weight.shape))
    assert torch.equal(view.tensor(matrix, tuple(layer.weight.shape)), layer.weight)


def test_groups_see_their_own_channels_only():
    layer = nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False)
    x = torch.randn(2, 4, 5, 5)
    (view,) = views_of(layer)
    rows = view.inputs(Call((x,), {})).take(None)
    for group in range(4):
        alone = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        (single,) = views_of(alone)
        own = single.inputs(Call((x[:, group : group + 1],), {})).take(None)
        assert torch.equal(rows[group], own[0])


def test_packed_attention_shows_query_key_and_value_as_three_groups():
    layer = nn.MultiheadAttention(6, 2, batch_first=True)
    packed, out = views_of(layer)
    q, k, v = (torch.randn(2, n, 6) for n in (4, 5, 5))
    rows = packed.inputs(Call((q, k), {"value": v}))
    assert rows.count == 8  # as many as the shortest of the three has
    assert torch.equal(rows.take(torch.tensor([0, 7]))[1], k.reshape(-1, 6)[[0, 7]])
    assert torch.equal(packed.matrix(layer.in_proj_weight)[2], layer.in_proj_weight[12:])
    assert out.inputs is None
    assert "out of sight" in out.blind


def test_attention_with_other_key_sizes_has_separate_projections():
    layer = nn.MultiheadAttention(6, 2, kdim=3, vdim=5)
    names = [view.parameter for view in views_of(layer)]
    assert names == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]


def test_recurrent_layers_show_the_first_input_weights_and_replay_all_others():
    layer = nn.LSTM(5, 7, num_layers=2, bidirectional=True, proj_size=3)
    seen = {view.parameter for view in views_of(layer) if view.inputs is not None}
    inner = {view.parameter for view in views_of(layer) if view.inner is not None}
    assert seen == {"weight_ih_l0", "weight_ih_l0_reverse"}
    assert inner == {n for n, _ in layer.named_parameters() if n.startswith("weight")} - seen
    x = torch.randn(4, 2, 5)
    packed = nn.utils.rnn.pack_padded_sequence(x, [4, 2])
    view = views_of(layer)[0]
    assert view.inputs(Call((packed,), {})).count == 6
    assert view.inputs(Call((x,), {})).count == 8


def test_embeddings_have_no_inputs():
    (view,) = views_of(nn.Embedding(9, 4))
    assert view.inputs is None
    assert view.matrix(torch.zeros(9, 4)).shape == (1, 9, 4)


def test_unknown_modules_have_no_kind():
    assert kind_of(nn.BatchNorm2d(3)) is None
    assert kind_of(nn.ReLU()) is None
    assert {"linear", "conv", "attention", "recurrent"} <= set(KINDS)
