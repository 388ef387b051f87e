"""Which tensors are one, which meet, and which have no memory: by what they cover."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from fewbits.engine.network.shared_memory import (
    extent_of,
    is_same,
    overlaps,
    same_values,
    storage_problem,
    ties,
)


class Wrapper(torch.Tensor):
    """A tensor whose values are elsewhere, as those of DTensor."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(str(func))


def test_one_tensor_is_the_same_bytes_read_in_the_same_way():
    whole = torch.arange(12.0).reshape(3, 4)
    assert is_same(whole, whole.detach())
    assert is_same(whole, whole.view(12).reshape(3, 4))
    assert not is_same(whole, whole.clone())
    assert not is_same(whole, whole[:2])
    assert not is_same(torch.ones(4, 4), torch.ones(4, 4))
    square = torch.ones(4, 4)
    assert not is_same(square, square.t())
    assert not is_same(square, square.view(torch.int32))


def test_the_stride_of_an_axis_of_one_tells_nothing():
    row = torch.ones(1, 5)
    assert is_same(row, row.as_strided((1, 5), (1, 1)))


def test_empty_tensors_are_never_one():
    assert extent_of(torch.ones(0, 3)) is None
    assert ties({"a": torch.ones(0), "b": torch.ones(0)}) == {}


def test_conjugates_and_negatives_are_other_tensors():
    values = torch.ones(3, dtype=torch.complex64)
    assert not is_same(values, values.conj())
    assert not is_same(values.imag, values.conj().imag)


def test_slices_that_do_not_meet_are_apart_and_their_whole_meets_both():
    flat = torch.arange(20.0)
    parts = {"a": flat[:8].view(2, 4), "b": flat[8:].view(3, 4)}
    assert overlaps(parts) == {}
    assert overlaps({**parts, "flat": flat}) == {"a": ("flat",), "b": ("flat",), "flat": ("a", "b")}


def test_interleaved_columns_are_apart():
    matrix = torch.ones(4, 6)
    assert overlaps({"q": matrix[:, :3], "k": matrix[:, 3:]}) == {}
    assert overlaps({"even": matrix[:, ::2], "odd": matrix[:, 1::2]}) == {}
    assert set(overlaps({"q": matrix[:, :4], "k": matrix[:, 3:]})) == {"q", "k"}


def test_transposes_and_other_shapes_and_dtypes_meet():
    matrix = torch.ones(4, 6)
    found = overlaps(
        {"m": matrix, "t": matrix.t(), "v": matrix.view(24), "i": matrix.view(torch.int32)}
    )
    assert set(found) == {"m", "t", "v", "i"}
    assert overlaps({"m": matrix, "again": matrix.detach()}) == {}


def test_expanded_tensors_cover_what_they_show():
    one = torch.ones(1)
    assert set(overlaps({"one": one, "many": one.expand(7)})) == {"one", "many"}
    window = torch.arange(10.0).unfold(0, 3, 1)
    assert overlaps({"window": window, "other": torch.ones(5)}) == {}


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.eye(3).to_sparse(), r"sparse_coo.*to_dense"),
        ("csr", r"sparse_csr.*to_dense"),
        (torch.ones(2, device="meta"), "no values yet"),
        (Wrapper(torch.ones(2)), r"Wrapper without memory.*full_tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR")
def test_what_has_no_plain_memory_is_told_with_a_remedy(tensor, told):
    tensor = torch.eye(3).to_sparse_csr() if isinstance(tensor, str) else tensor
    assert re.search(told, storage_problem(tensor))
    assert extent_of(tensor) is None
    assert not is_same(tensor, tensor)


def test_plain_tensors_parameters_and_their_subclasses_have_no_hindrance():
    class Marked(torch.Tensor):
        pass

    for tensor in (torch.ones(3), nn.Parameter(torch.ones(3)), torch.ones(3).as_subclass(Marked)):
        assert storage_problem(tensor) == ""


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_same_values_compares_what_torch_cannot():
    half = torch.ones(3, dtype=torch.complex64).to(torch.complex32)
    assert same_values(half, half.clone())
    assert same_values(torch.ones(3).to(torch.float8_e4m3fn), torch.ones(3).to(torch.float8_e4m3fn))
    assert not same_values(torch.ones(3), torch.zeros(3))
