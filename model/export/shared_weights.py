"""Graphs whose large weights are in files of their own, which all graphs of a bundle read."""

from __future__ import annotations

from pathlib import Path

from onnxscript import ir

from model.core import bundle
from model.core.weight_names import is_ngram_table

_OUTSIDE_BYTES = 4096
"""Weights from this size on go to these files."""


def save_float32(graph: ir.Model, folder: Path) -> None:
    """Saves the float32 graph, and its large weights beside it."""
    large = [
        value
        for value in graph.graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes >= _OUTSIDE_BYTES
    ]
    for file in (bundle.NGRAMS, bundle.WEIGHTS):
        chosen = [value for value in large if (file == bundle.NGRAMS) is is_ngram_table(value.name)]
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
