from __future__ import annotations

import pytest
import torch

from fewbits.engine.network.padding import as_mask, keep_real, masks_of, own_masks
from fewbits.errors import CalibrationError, ConfigError


def test_the_masks_of_a_dict_are_found():
    ones = torch.ones(2, 3, dtype=torch.int64)
    batch = {"attention_mask": ones, "decoder_attention_mask": ones[:, :2], "input_ids": ones}
    found = masks_of(batch, 0, own_masks)
    assert [tuple(mask.shape) for mask in found] == [(2, 3), (2, 2)]
    assert all(mask.dtype == torch.bool for mask in found)
    assert masks_of(ones, 0, own_masks) == []


def test_a_mask_of_who_sees_whom_is_not_one_of_padding():
    assert masks_of({"attention_mask": torch.ones(2, 1, 3, 3)}, 0, own_masks) == []


def test_a_function_of_the_caller_finds_them():
    mask = as_mask(lambda batch: batch[1])
    assert masks_of((None, torch.tensor([[1, 0]])), 0, mask)[0].tolist() == [[True, False]]
    assert masks_of((None, None), 0, mask) == []


def test_what_is_no_mask_is_refused():
    with pytest.raises(ConfigError, match="mask must be a function"):
        as_mask("attention_mask")
    with pytest.raises(CalibrationError, match="calibration batch 4"):
        masks_of(0, 4, lambda batch: torch.ones(3))


def test_values_at_padding_become_zero():
    values = torch.ones(2, 3, 4)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert keep_real(values, [mask]).sum(2).tolist() == [[4, 4, 0], [4, 0, 0]]
    assert keep_real(torch.ones(2, 3), [mask]).sum() == 6
