"""The number of sequential operations until a prediction sees its context."""

from __future__ import annotations

from collections.abc import Sequence

CONTEXTS = (5, 10, 20, 40, 80, 160, 1000)
KERNELS = (2, 3, 4, 5, 6)


def sequential_steps(context: int, kernel: int) -> int:
    """Layers of a kernel width that see `context` tokens: ceil((N - 1) / (k - 1)), O(N / k).

    The operations of a layer are parallel. An LSTM takes N steps, one for each token.
    """
    if kernel < 2:
        raise ValueError(f"a kernel of width {kernel} sees no earlier token")
    return -(-(context - 1) // (kernel - 1))


def steps_table(contexts: Sequence[int] = CONTEXTS, kernels: Sequence[int] = KERNELS) -> str:
    """Markdown: convolution layers in sequence beside an LSTM's steps."""
    heads = " | ".join(f"layers, k = {kernel}" for kernel in kernels)
    rows = [f"| context, tokens | LSTM steps | {heads} |", "| --- " * (2 + len(kernels)) + "|"]
    for context in contexts:
        cells = " | ".join(str(sequential_steps(context, kernel)) for kernel in kernels)
        rows.append(f"| {context} | {context} | {cells} |")
    return "\n".join(rows)
