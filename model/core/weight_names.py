"""Names of weights in the graphs of a bundle.

The graphs of a bundle share the weights that they store under one name, and a model is restored
from a bundle by these names. The input of a product has the name of the product's weight; only what
the softmax reads is called OUTPUT whatever its weights are.
"""

from __future__ import annotations

EMBEDDING = "embedding"
INPUT, HEAD = "input", "head"
"""The projections before and after the trunk."""
OUTPUT = "output"
"""A full softmax."""
HEAD_COLUMNS = "head_columns"
"""The head of an adaptive softmax."""


def ngram_table(number: int) -> str:
    """The vectors of hashed n-grams."""
    return f"ngram_{number}_table"


def ngram_mix(number: int) -> str:
    """The projection of these vectors."""
    return f"ngram_{number}_mix"


def is_ngram_table(name: str | None) -> bool:
    """Whether a name is one of `ngram_table`."""
    return name is not None and name.startswith("ngram_") and name.endswith("_table")


def convolution(layer: int) -> str:
    """A convolution, counted over all blocks."""
    return f"conv_{layer}"


def shortcut(block: int) -> str:
    """The projection on the residual connection of a block."""
    return f"projection_{block}"


def tail_in(tail: int) -> str:
    """The first matrix of a tail of an adaptive softmax."""
    return f"tail_{tail}_in"


def tail_out(tail: int) -> str:
    """The second matrix of a tail."""
    return f"tail_{tail}_out"


def bias(weight: str) -> str:
    """The bias beside a weight."""
    return f"{weight}_bias"


_SCALES = "_scales"


def scales(weight: str) -> str:
    """The scales of the columns of a weight that is stored in bytes."""
    return weight + _SCALES


def of_scales(name: str) -> str | None:
    """The weight whose scales have a name; None for a name of other numbers."""
    return name.removesuffix(_SCALES) if name.endswith(_SCALES) else None
