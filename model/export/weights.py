"""Weights as a graph stores and reads them, the large ones in files that all graphs share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from onnxscript import ir

from model.architecture import rounding
from model.core import bundle, weight_names
from model.export.nodes import Nodes

_OUTSIDE_BYTES = 4096
"""Weights from this size on go to these files."""


class Weights:
    """The weights of a graph, each stored once under its name.

    Matrices are stored in float16, or in bytes if they are numbers that bytes stand for; tables
    that are only looked up in bytes; vectors as they are computed with. The graph itself makes
    float32 of a matrix, which ONNX Runtime does once, at load.

    dtype: what the graph computes with, FLOAT or FLOAT16.
    """

    def __init__(self, nodes: Nodes, dtype: ir.DataType = ir.DataType.FLOAT) -> None:
        self.nodes, self.dtype = nodes, dtype
        self._matrices: dict[str, ir.Value] = {}

    def matrix(self, name: str, weight: torch.Tensor) -> ir.Value:
        """A weight [rows, columns] as it is computed with."""
        if name not in self._matrices:
            stored = rounding.bytes_of(weight)
            if stored is None:
                self._matrices[name] = self._from_float16(self._float16(name, weight))
            else:
                self._matrices[name] = self._from_bytes(*self._bytes(name, *stored))
        return self._matrices[name]

    def tie(self, name: str, other: str, weight: torch.Tensor) -> None:
        """Makes a matrix the transpose of another one, [columns, rows], which is stored once."""
        if name not in self._matrices:
            stored = self.matrix(other, weight)
            self._matrices[name] = self.nodes.op("Transpose", [stored], perm=[1, 0])

    def has(self, name: str) -> bool:
        """Whether a matrix has been read or tied."""
        return name in self._matrices

    def rows(self, name: str, table: torch.Tensor, rows: ir.Value) -> ir.Value:
        """Rows of a table [n, columns] in bytes that is only looked up: float [..., columns].

        Made floats once gathered: so the table is read from the mapped file, which all sessions
        share. Raises ValueError if bytes do not stand for its numbers.
        """
        stored, scales = self._bytes(name, *rounding.require_bytes(table))
        return self._from_bytes(self.nodes.op("Gather", [stored, rows]), scales)

    def matrix_rows(self, name: str, weight: torch.Tensor, rows: ir.Value) -> ir.Value:
        """As `rows`, of a table that is a matrix too."""
        if rounding.bytes_of(weight) is not None:
            return self.rows(name, weight, rows)
        gathered = self.nodes.op("Gather", [self._float16(name, weight), rows])
        return self._from_float16(gathered)

    def in_bytes(self, name: str, numbers: npt.NDArray[np.int8]) -> ir.Value:
        """A matrix in bytes, as it is stored."""
        return self.nodes.constant(name, np.ascontiguousarray(numbers))

    def vector(self, name: str, value: torch.Tensor) -> ir.Value:
        """A bias, or other numbers that are stored as they are computed with."""
        if self.dtype == ir.DataType.FLOAT16:  # the float32 graph has other numbers by the name
            return self.nodes.constant(f"{name}_float16", value.detach().half().numpy())
        return self.nodes.constant(name, value.detach().float().numpy())

    def _bytes(
        self, name: str, numbers: npt.NDArray[np.int8], scales: npt.NDArray[np.float32]
    ) -> tuple[ir.Value, ir.Value]:
        stored = self.in_bytes(name, numbers)
        return stored, self.nodes.constant(weight_names.scales(name), scales)

    def _float16(self, name: str, weight: torch.Tensor) -> ir.Value:
        return self.nodes.constant(name, np.ascontiguousarray(weight.detach().half().numpy()))

    def _from_float16(self, stored: ir.Value) -> ir.Value:
        return self._cast(stored, self.dtype) if self.dtype != ir.DataType.FLOAT16 else stored

    def _from_bytes(self, stored: ir.Value, scales: ir.Value) -> ir.Value:
        """By a float32 product: at load there is none in float16."""
        product = self.nodes.op("Mul", [self._cast(stored, ir.DataType.FLOAT), scales])
        return self._cast(product, self.dtype) if self.dtype != ir.DataType.FLOAT else product

    def _cast(self, x: ir.Value, dtype: ir.DataType) -> ir.Value:
        return self.nodes.op("Cast", [x], to=dtype.value)


def save_float32(graph: ir.Model, folder: Path) -> None:
    """Saves the float32 graph, and its large weights beside it."""
    large = [
        value
        for value in graph.graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes >= _OUTSIDE_BYTES
    ]
    for file in (bundle.NGRAMS, bundle.WEIGHTS):
        chosen = [
            value
            for value in large
            if (file == bundle.NGRAMS) is weight_names.is_ngram_table(value.name)
        ]
        if chosen:
            tensors = [value.const_value for value in chosen if value.const_value is not None]
            outside = ir.external_data.convert_tensors_to_external(tensors, folder, file)
            for value, tensor in zip(chosen, outside, strict=True):
                value.const_value = tensor
    ir.save(graph, folder / bundle.GRAPH)


def save(graph: ir.Model, folder: Path, name: str) -> None:
    """Saves another graph into a folder that has the float32 graph.

    A weight by the name of one that is stored outside that graph is taken from there.
    """
    float32 = ir.load(folder / bundle.GRAPH)
    for weight, value in graph.graph.initializers.items():
        stored = float32.graph.initializers.get(weight)
        if stored is not None and isinstance(stored.const_value, ir.ExternalTensor):
            value.const_value = stored.const_value
    ir.save(graph, folder / name)
