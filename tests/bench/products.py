"""The raw engine loop beside the matrix products in it: `make bench-products TEXT=lines.txt`.

The raw loop runs planned batches one after the other. The products run alone: those of a full
batch, in the model's shapes and in the same precision, on the same threads, in a graph of nothing
else. What is left of the loop's time goes into gates, sums, gathers, the softmax and planning's
index tables. Rounds alternate; medians of the rounds' ratios are printed. One thread by default:
every shape has a session of its own, and idle threads of many sessions disturb each other.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxscript import ir

from app.engine.session import Session
from app.settings import Settings
from model import bundle
from model.config import ModelConfig
from model.data import open_text
from model.graph import FlatBatch, Precision
from model.report.machine import machine
from tests.bench.scoring import planned, run_raw

Shape = tuple[int, int, int]
"""Rows, inner width, columns."""


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="a text file; its lines are scored")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--lines", type=int, default=400, help="lines of a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bundle", type=Path, default=Settings().bundle)
    options = parser.parse_args()
    with open_text(options.text) as file:
        lines = [line.strip() for line in file if line.strip()][: options.lines]
    loaded = bundle.load(options.bundle)
    precisions: list[Precision] = ["float32"]
    if loaded.graph_int8 is not None:
        precisions.append("int8")
    print(f"{machine()}; onnxruntime {ort.__version__}")
    print(f"bundle: {loaded.config.name} {loaded.fingerprint}; {options.rounds} rounds")
    rates: dict[Precision, list[float]] = {p: [] for p in precisions}
    shares: dict[Precision, list[float]] = {p: [] for p in precisions}
    products: dict[Precision, list[float]] = {p: [] for p in precisions}
    prepared = {}
    for precision in precisions:
        session = Session(loaded, "cpu", options.threads, 64, precision)
        batches, tokens = planned(loaded, lines, session.multiple)
        shapes = [found for batch in batches for found in _shapes(loaded.config.model, batch)]
        prepared[precision] = (session, batches, tokens, _Products(shapes, precision, options))
    for number in range(options.rounds + 1):
        for precision, (session, batches, tokens, alone) in prepared.items():
            loop = run_raw(session, batches)
            ceiling = alone.run()
            if number:  # the first is the warm-up
                rates[precision].append(tokens / loop)
                shares[precision].append(ceiling / loop)
                products[precision].append(2 * alone.macs / ceiling / 1e9)
    print("| figure | median | min | max |\n| --- | --- | --- | --- |")
    for precision in precisions:
        _row(f"{precision}: products / raw loop, time", shares[precision])
        _row(f"{precision}: products, G operations/s", products[precision])
        _row(f"{precision}: raw loop, tokens/s", rates[precision])
    if "int8" in precisions:
        pairs = zip(rates["int8"], rates["float32"], strict=True)
        _row("raw loop, int8 / float32", [a / b for a, b in pairs])


def _row(name: str, values: list[float]) -> None:
    middle = statistics.median(values)
    print(f"| {name} | {middle:.4g} | {min(values):.4g} | {max(values):.4g} |")


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

    def __init__(
        self, shapes: list[Shape], precision: Precision, options: argparse.Namespace
    ) -> None:
        self.shapes = shapes
        self.macs = sum(rows * inner * columns for rows, inner, columns in shapes)
        self.sessions = {
            widths: _product(*widths, precision, options.threads)
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
    raw = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
