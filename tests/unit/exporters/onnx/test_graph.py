"""Changes of a graph keep what it computes, whatever the zero points of its weights."""

from __future__ import annotations

import numpy as np
import pytest

from fewbits.exporters.onnx.graph import absorb_norms, own_zeros, pack_narrow

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")

X = np.random.default_rng(0).normal(size=(4, 2, 5, 5)).astype(np.float32)


def graph(index, zero, layers=1):
    """Return convolutions of these integers with a normalization each, gains of both signs."""
    helper, make = onnx.helper, onnx.helper.make_node
    held = {
        "index": index,
        "step": np.float32([0.01, 0.02]),
        "zero": zero,
        "gain": np.float32([-1.5, 0.5]),
        "shift": np.float32([0.1, -0.2]),
        "mean": np.float32([0.3, 0.1]),
        "variance": np.float32([1.5, 0.7]),
    }
    nodes, name = [], "x"
    for k in range(layers):
        nodes.append(make("DequantizeLinear", ["index", "step", "zero"], [f"w{k}"], axis=0))
        nodes.append(make("Conv", [name, f"w{k}"], [f"c{k}"]))
        norm = [f"c{k}", "gain", "shift", "mean", "variance"]
        nodes.append(make("BatchNormalization", norm, [f"n{k}"]))
        name = f"y{k}"
        nodes.append(make("Relu", [f"n{k}"], [name]))
    side = 5 - 2 * layers
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes,
        "net",
        [value("x", onnx.TensorProto.FLOAT, ["batch", 2, 5, 5])],
        [value(name, onnx.TensorProto.FLOAT, ["batch", 2, side, side])],
        [onnx.numpy_helper.from_array(values, key) for key, values in held.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def answers(model, **entries):
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {"x": X})[0]


def integers(low, high, kind):
    draws = np.random.default_rng(1).integers(low, high + 1, (2, 2, 3, 3))
    draws[:, 0, 0, 0] = low
    return draws.astype(kind)


CASES = {
    "signed": (integers(-127, 127, np.int8), np.int8([0, 0]), True),
    "signed, lowest": (integers(-128, 127, np.int8), np.int8([0, 0]), False),
    "unsigned": (integers(1, 255, np.uint8), np.uint8([128, 128]), True),
    "unsigned, lowest": (integers(0, 255, np.uint8), np.uint8([128, 128]), False),
    "zeros of their own": (integers(10, 100, np.uint8), np.uint8([100, 7]), True),
    # Turned around 200, the 10 would be 390.
    "out of reach": (integers(10, 200, np.uint8), np.uint8([200, 3]), False),
}


@pytest.mark.parametrize("case", CASES)
def test_a_normalization_turns_integers_around_their_zero_point(case):
    index, zero, fits = CASES[case]
    model = graph(index, zero)
    before = answers(model)
    assert absorb_norms(model) == fits
    np.testing.assert_allclose(answers(model), before, rtol=0, atol=1e-5)
    onnx.checker.check_model(model, full_check=True)


@pytest.mark.parametrize(("low", "packed"), [(-7, 1), (-8, 0)])
def test_4_bits_where_turned_integers_fit(low, packed):
    model = graph(integers(low, 7, np.int8), np.int8([0, 0]))
    before = answers(model)
    assert absorb_norms(model) == 1
    assert pack_narrow(model) == packed
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(answers(model), before, rtol=0, atol=1e-5)


def test_zero_points_that_layers_share():
    model = graph(*CASES["signed"][:2], layers=2)
    before = answers(model)
    assert own_zeros(model) == 1
    zeros = [node.input[2] for node in model.graph.node if node.op_type == "DequantizeLinear"]
    assert len(set(zeros)) == 2
    np.testing.assert_array_equal(answers(model), before)
    assert own_zeros(model) == 0
