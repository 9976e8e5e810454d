"""Products of bytes are exact on every processor, by the graph that is right on it."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnxscript import ir

from model.core import bundle, byte_products
from model.core.graph import Precision
from model.data.corpus import Corpus
from model.export.flat_int8 import unsigned as with_unsigned_weights
from model.export.parity import Graph


def matrix(name: str, kind: int, rows: str, columns: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [rows, columns])


def test_the_stored_model_of_one_product_is_what_it_is_said_to_be() -> None:
    node = helper.make_node("MatMulInteger", ["a", "b"], ["c"])
    inputs = [matrix("a", TensorProto.UINT8, "n", "k"), matrix("b", TensorProto.INT8, "k", "m")]
    made = helper.make_graph([node], "p", inputs, [matrix("c", TensorProto.INT32, "n", "m")])
    expected = helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", 10)])
    assert onnx.load_from_string(byte_products._PRODUCT) == expected


def product(weight: np.ndarray, unsigned: bool) -> ort.InferenceSession:
    """x: uint8 [n, k] times a weight, int8 [k, m], both with scale 1, float [n, m]."""
    scale = helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])
    stored = helper.make_tensor("w", TensorProto.INT8, weight.shape, weight.flatten().tolist())
    node = helper.make_node(
        "MatMulIntegerToFloat", ["x", "w", "one", "one"], ["y"], domain="com.microsoft"
    )
    graph = helper.make_graph(
        [node],
        "p",
        [matrix("x", TensorProto.UINT8, "n", "k")],
        [matrix("y", TensorProto.FLOAT, "n", "m")],
        [scale, stored],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = ir.from_proto(helper.make_model(graph, ir_version=10, opset_imports=opsets))
    if unsigned:
        with_unsigned_weights(model)
    data = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(data, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("rows", [1, 2, 4, 7, 64])
@pytest.mark.parametrize(("depth", "columns"), [(2, 1), (64, 16), (513, 40), (1000, 300)])
def test_the_largest_products_are_exact(rows: int, depth: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    x = rng.choice(np.array([0, 1, 254, 255], np.uint8), (rows, depth))
    weight = rng.choice(np.array([-128, -127, -1, 0, 127], np.int8), (depth, columns))
    weight[:2], x[:, :2] = 127, 255  # two that saturate where they are added in 16 bits
    exact = x.astype(np.int64) @ weight.astype(np.int64)
    found = product(weight, unsigned=byte_products.saturate()).run(None, {"x": x})[0]
    np.testing.assert_array_equal(found, exact)
    found = product(weight, unsigned=True).run(None, {"x": x})[0]
    np.testing.assert_array_equal(found, exact)
    signed = product(weight, unsigned=False).run(None, {"x": x})[0]
    assert (signed != exact).any() == byte_products.saturate()


@pytest.mark.parametrize("name", ["tiny", "adaptive"])
def test_both_graphs_give_the_same_bits_where_both_are_exact(
    name: str, request: pytest.FixtureRequest, calibration: Corpus
) -> None:
    made: bundle.Bundle = request.getfixturevalue(name)
    assert made.graph_int8 is not None
    assert made.graph_int8_unsigned is not None
    precision: Precision = "int8"
    ids = np.array(calibration.tokens[:500], np.int64)
    signed, unsigned = (
        Graph(path, made.config.model, precision).run(ids)
        for path in (made.graph_int8, made.graph_int8_unsigned)
    )
    for one, other in zip(signed, unsigned, strict=True):
        assert np.array_equal(one, other) or byte_products.saturate()
