"""The raw engine loop beside the matrix products in it: `make bench-products TEXT=lines.txt`.

The raw loop runs planned batches one after the other. The products run alone: those of a full
batch, in the model's shapes and in the same precision, on the same threads, in a graph of nothing
else. What is left of the loop's time goes into gates, sums, gathers, the softmax and planning's
index tables. Rounds alternate; medians of the rounds' ratios are printed. One thread by default:
every shape has a session of its own, and idle threads of many sessions disturb each other.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import onnxruntime as ort
from onnxscript import ir

from app.engine.runtime.session import Session
from model.core import bundle, byte_products
from model.core.config import ModelConfig
from model.core.flat_batch import FlatBatch
from model.core.graph import Precision
from model.export.flat_int8 import unsigned
from tests.bench.figures import Figures
from tests.bench.scoring import (
    add_options,
    introduced,
    planned,
    precisions,
    read_lines,
    run_raw,
)

Shape = tuple[int, int, int]
"""Rows, inner width, columns."""


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--lines", type=int, default=400, help="lines of a round")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    loaded = introduced(options.bundle)
    lines = read_lines(options.text)[: options.lines]
    print(run(loaded, lines, options.rounds, options.threads).markdown())


def run(loaded: bundle.Bundle, lines: list[str], rounds: int, threads: int = 1) -> Figures:
    """The figures of all precisions."""
    figures = Figures(f"The raw loop beside its products, {threads} threads, {rounds} rounds")
    prepared = {}
    for precision in precisions(loaded):
        session = Session(loaded, "cpu", threads, 64, precision)
        batches, tokens = planned(loaded, lines, session.multiple)
        shapes = [found for batch in batches for found in _shapes(loaded.config.model, batch)]
        prepared[precision] = (session, batches, tokens, _Products(shapes, precision, threads))
    for number in range(rounds + 1):
        rates = {}
        for precision, (session, batches, tokens, alone) in prepared.items():
            loop = run_raw(session, batches)
            ceiling = alone.run()
            rates[precision] = tokens / loop
            if number:  # the first is the warm-up
                figures.add(f"{precision}: products / raw loop, time", ceiling / loop)
                figures.add(
                    f"{precision}: products, 10^9 operations/s", 2e-9 * alone.macs / ceiling
                )
                figures.add(f"{precision}: raw loop, tokens/s", tokens / loop)
        if number and "int8" in rates:
            figures.add("raw loop, int8 / float32", rates["int8"] / rates["float32"])
    return figures


def _shapes(config: ModelConfig, batch: FlatBatch) -> list[Shape]:
    """The products of one batch."""
    rows = len(batch.tokens)
    found = [
        (rows, layer.kernel * layer.inputs, layer.outputs)
        for layer in config.layers()
        for _ in range(config.conv_width)
    ]
    scored = len(batch.score_rows)
    found.append((scored, config.head_width, config.head_columns))
    for tail in config.tails:
        inside = int(((batch.targets >= tail.low) & (batch.targets < tail.high)).sum())
        inside = -(-max(inside, 1) // 4) * 4
        found += [(inside, config.head_width, tail.inner), (inside, tail.inner, tail.size)]
    return found


class _Products:
    """Every product of some batches, each shape once a call in a session of its own."""

    def __init__(self, shapes: list[Shape], precision: Precision, threads: int) -> None:
        self.shapes = shapes
        self.macs = sum(rows * inner * columns for rows, inner, columns in shapes)
        self.sessions = {
            widths: _product(*widths, precision, threads)
            for widths in {(inner, columns) for _, inner, columns in shapes}
        }
        kind = np.uint8 if precision == "int8" else np.float32
        rng = np.random.default_rng(0)
        self.inputs = {
            (rows, inner): rng.integers(100, 156, (rows, inner)).astype(kind)
            for rows, inner, _ in shapes
        }

    def run(self) -> float:
        """Seconds of all products, one after the other."""
        began = time.perf_counter()
        for rows, inner, columns in self.shapes:
            self.sessions[inner, columns].run(None, {"x": self.inputs[rows, inner]})
        return time.perf_counter() - began


def _product(inner: int, columns: int, precision: Precision, threads: int) -> ort.InferenceSession:
    rng = np.random.default_rng(0)
    kind = ir.DataType.UINT8 if precision == "int8" else ir.DataType.FLOAT
    x = ir.Value(name="x", shape=ir.Shape(["n", inner]), type=ir.TensorType(kind))
    tape = ir.tape.Tape()

    def constant(name: str, array: np.ndarray) -> ir.Value:
        return tape.initializer(ir.tensor(array, name=name), name=name)

    if precision == "int8":
        weight = constant("w", rng.integers(-127, 128, (inner, columns)).astype(np.int8))
        scale = constant("s", np.array(0.01, np.float32))
        scales = constant("t", np.full(columns, 0.01, np.float32))
        zero = constant("z", np.array(128, np.uint8))
        inputs = [x, weight, scale, scales, zero]
        y = tape.op("MatMulIntegerToFloat", inputs, domain="com.microsoft")
    else:
        weight = constant("w", rng.normal(size=(inner, columns)).astype(np.float32))
        y = tape.op("MatMul", [x, weight])
    y.name, y.dtype, y.shape = "y", ir.DataType.FLOAT, ir.Shape(["n", columns])
    graph = ir.Graph(
        [x],
        [y],
        nodes=tape.nodes,
        initializers=tape.initializers,
        opset_imports={"": 21, "com.microsoft": 1},
        name="product",
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    model = ir.Model(graph, ir_version=10)
    if precision == "int8" and byte_products.saturate():
        unsigned(model)  # as the bundle's graph for this processor is
    raw = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
