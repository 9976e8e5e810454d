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
ngram_table = "ngram_{}_table".format
"""The vectors of hashed n-grams."""
ngram_mix = "ngram_{}_mix".format
"""The projection of these vectors."""
convolution = "conv_{}".format
"""A convolution, counted over all blocks."""
shortcut = "projection_{}".format
"""The projection on the residual connection of a block."""
tail_in = "tail_{}_in".format
"""The first matrix of a tail of an adaptive softmax."""
tail_out = "tail_{}_out".format
"""The second matrix of a tail."""
bias = "{}_bias".format
"""The bias beside a weight."""
_SCALES = "_scales"


def is_ngram_table(name: str | None) -> bool:
    """Whether a name is one of `ngram_table`."""
    return name is not None and name.startswith("ngram_") and name.endswith("_table")


def scales(weight: str) -> str:
    """The scales of the columns of a weight that is stored in bytes."""
    return weight + _SCALES


def of_scales(name: str) -> str | None:
    """The weight whose scales have a name; None for a name of other numbers."""
    return name.removesuffix(_SCALES) if name.endswith(_SCALES) else None
