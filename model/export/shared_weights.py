"""Graphs that share the weights of a bundle's float32 graph."""

from __future__ import annotations

from pathlib import Path

from onnxscript import ir

from model.core import bundle


def save(made: ir.Model, folder: Path, name: str) -> None:
    """Saves a graph into a bundle's folder that has the float32 graph.

    A weight by the name of one that is stored outside that graph is taken from there.
    """
    stored = ir.load(folder / bundle.GRAPH)
    for weight, value in made.graph.initializers.items():
        other = stored.graph.initializers.get(weight)
        if other is not None and isinstance(other.const_value, ir.ExternalTensor):
            value.const_value = other.const_value
    ir.save(made, folder / name)
