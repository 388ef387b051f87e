"""Finished weights in little memory or on disk, and the tensors of a file."""

from __future__ import annotations

import copy
import gc
import pickle
from dataclasses import fields

import numpy as np
import pytest

from fewbits.coded import (
    Codebook,
    CodebookTensor,
    GridTensor,
    Layout,
    RawTensor,
    TensorFacts,
    TransformTensor,
    facts_of,
)
from fewbits.compression.storage.finished_tensors import FileTensors, FinishedWeights
from fewbits.compression.storage.journal import Finished, Journal
from fewbits.compression.storage.workspace import _Temporary

F4 = np.float32


def grid(low, high, shape=(2, 3), layout=None):
    index = np.linspace(low, high, 6).round().astype(np.int32).reshape(2, 3)
    return GridTensor(shape, "float16", index, np.array([2, 3], F4), np.zeros(1, F4), layout)


def codebook(levels=(-1.0, 0.5, 2.0)):
    index = np.array([[0, 2, 1], [1, 1, 0]], np.int32)
    book = Codebook(np.array(levels, F4))
    return CodebookTensor((2, 3), "bfloat16", index, book, np.array([1, 4], F4))


def transform(high):
    index = np.array([[0, 1, -1], [high, 2, 0]], np.int32)
    coefficients = GridTensor((2, 3), "float32", index, np.ones(1, F4), np.zeros(1, F4))
    basis = GridTensor(
        (2, 2), "float32", np.array([[1, -300], [0, 1]], np.int32), np.ones(1, F4), np.zeros(1, F4)
    )
    return TransformTensor((2, 3), "float32", coefficients, basis, "left")


KINDS = {
    "int8": grid(-128, 127),
    "uint8": grid(0, 255),
    "int16": grid(-129, 127),
    "uint16": grid(0, 65535),
    "int32": grid(-(2**31), 2**31 - 1),
    "layout": grid(0, 3, (3, 2), Layout((2, 3), (1, 0))),
    "codebook": codebook(),
    "transform": transform(40000),
}


def same(one, other):
    assert type(one) is type(other)
    for entry in fields(one):
        a, b = getattr(one, entry.name), getattr(other, entry.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, entry.name
            assert np.array_equal(a, b), entry.name
        elif isinstance(a, (GridTensor, Codebook)):
            same(a, b)
        else:
            assert a == b, entry.name


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("tensor", KINDS.values(), ids=KINDS.keys())
def test_finished_weights_come_back_as_they_were(tensor, on_disk, tmp_path):
    finished = FinishedWeights(Journal(tmp_path, "k") if on_disk else None)
    part = Finished("module a", ("a.weight",), info={"a.weight": {"error": 0.5}})
    finished.add(part, {"a.weight": tensor}, {})
    same(finished["a.weight"], tensor)
    assert finished.facts["a.weight"] == TensorFacts.of(tensor)
    assert finished.info == {"a.weight": {"error": 0.5}}
    assert list(finished) == ["a.weight"]
    assert "a.weight" in finished
    assert "b" not in finished


@pytest.mark.parametrize(
    ("low", "high", "size"),
    [(-128, 127, 1), (0, 255, 1), (-129, 0, 2), (0, 65535, 2), (0, 65536, 4)],
)
def test_indices_are_held_in_the_narrowest_integers(low, high, size):
    finished = FinishedWeights()
    finished.add(Finished("", ("a",), info={"a": {}}), {"a": grid(low, high)}, {})
    held = [c.cell_contents for c in finished._held["a"].__closure__]
    assert [x.itemsize for x in held if isinstance(x, np.ndarray)] == [size]


def test_an_empty_weight():
    finished = FinishedWeights()
    empty = GridTensor(
        (0, 4), "float32", np.zeros((0, 4), np.int32), np.ones(1, F4), np.ones(1, F4)
    )
    finished.add(Finished("", ("a",), info={"a": {}}), {"a": empty}, {})
    same(finished["a"], empty)


@pytest.mark.parametrize("on_disk", [False, True])
def test_equal_codebooks_are_one_and_others_are_not(on_disk, tmp_path):
    finished = FinishedWeights(Journal(tmp_path, "k") if on_disk else None)
    for name, levels in (("a", (1, 2, 3)), ("b", (1, 2, 3)), ("c", (1, 2, 4))):
        part = Finished(f"module {name}", (name,), info={name: {}})
        finished.add(part, {name: codebook(levels)}, {})
    assert finished["a"].codebook is finished["b"].codebook is finished["a"].codebook
    assert finished["c"].codebook is not finished["a"].codebook


def test_a_journal_of_an_earlier_run_is_taken_over(tmp_path):
    bias = RawTensor((1,), "float32", np.ones(1, F4).view(np.uint8), "float32")
    part = Finished("module a", ("b", "a"), ("bias",), {"a": {"x": 1.0}, "b": {}})
    weights = {"b": grid(0, 9), "a": codebook()}
    FinishedWeights(Journal(tmp_path, "k")).add(part, weights, {"bias": bias})
    again = FinishedWeights(Journal(tmp_path, "k"))
    assert list(again) == ["b", "a"]
    assert again.info == {"a": {"x": 1.0}, "b": {}}
    same(again["a"], weights["a"])
    same(again.changed("bias"), bias)
    with pytest.raises(ValueError, match="'a' is not in the journal"):
        again.changed("a")


def test_the_tensors_of_a_file_are_a_mapping_in_their_order():
    finished, made = FinishedWeights(), []
    finished.add(Finished("", ("w",), info={"w": {}}), {"w": grid(0, 9)}, {})
    bias = RawTensor((1,), "float32", np.ones(1, F4).view(np.uint8), "float32")

    def make():
        made.append(1)
        return bias

    tensors = FileTensors(["b", "w"], finished, {"b": make}, {"b": TensorFacts.of(bias)})
    assert list(tensors) == list(tensors.facts) == ["b", "w"]
    assert len(tensors) == 2
    assert facts_of(tensors) is tensors.facts
    assert tensors.facts["w"] == TensorFacts((2, 3), "float16", "grid")
    assert "w" in tensors
    assert "x" not in tensors
    assert tensors.get("x") is None
    assert not made  # nothing is made before it is looked up
    assert tensors["b"] is bias
    assert made == [1]
    assert [name for name, _ in tensors.items()] == ["b", "w"]
    same(tensors["w"], grid(0, 9))
    with pytest.raises(KeyError):
        tensors["x"]


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_of_the_tensors_of_a_file_outlive_it(copied, on_disk, tmp_path):
    folder = _Temporary() if on_disk else None
    finished = FinishedWeights(Journal(folder.path / "j", "k") if folder else None)
    finished.add(Finished("", ("w",), info={"w": {}}), {"w": grid(0, 9)}, {})
    bias = RawTensor((1,), "float32", np.ones(1, F4).view(np.uint8), "float32")
    facts = {"b": TensorFacts.of(bias)}
    copy_of = copied(FileTensors(["b", "w"], finished, {"b": lambda: bias}, facts, folder))
    del folder, finished
    gc.collect()
    assert list(copy_of) == ["b", "w"]
    same(copy_of["w"], grid(0, 9))
    same(copy_of["b"], bias)
    assert facts_of(copy_of)["w"] == TensorFacts.of(grid(0, 9))
