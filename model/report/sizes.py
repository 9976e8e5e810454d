"""Widths at which two models have the same number of parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from model.core.config import LSTMConfig, ModelConfig
from model.core.gates import GateName

Config = TypeVar("Config", ModelConfig, LSTMConfig)

TOLERANCE = 0.02
"""Share by which the parameters of two compared models may differ."""


def with_gate(config: ModelConfig, gate: GateName) -> ModelConfig:
    """The model with another gate, its trunk widened or narrowed to the same number of parameters.

    A gate of two halves needs two columns for a channel, so the trunk of another gate is about
    sqrt(2) times as wide. Embedding and head keep their widths. Raises ValueError if no width fits.
    """
    if config.tied and config.head_channels is None:
        raise ValueError(
            "trunks of compared gates differ in width: tied weights then need head_channels"
        )
    base = config.blocks[0].layers[0][1]

    def widened(width: int) -> ModelConfig:
        return _scaled(config, width / base).model_copy(update={"gate": gate})

    if gate == config.gate:
        return config
    return _nearest(config.parameters(), widened, range(max(1, base // 4), 4 * base + 1))


def lstm_like(config: ModelConfig, layers: int = 1) -> LSTMConfig:
    """An LSTM of as many parameters, with the same embedding, head and softmax.

    Raises ValueError if no width fits, or for n-grams: their tables would become matrices.
    """
    if config.ngrams:
        raise ValueError("a model with n-grams has no LSTM of its size and cost")
    shared = {
        name: getattr(config, name)
        for name in ("vocabulary", "embedding", "head_channels", "cutoffs", "tied")
    }

    def of_width(width: int) -> LSTMConfig:
        return LSTMConfig.model_validate(shared | {"lstm": (width,) * layers})

    widest = 1 + int(config.trunk_macs() ** 0.5)  # one layer has at least 4 n^2 weights
    first = 1 if not config.cutoffs or config.head_channels else 4 ** len(config.tails)
    return _nearest(config.parameters(), of_width, range(first, widest + 1))


def _nearest(parameters: int, build: Callable[[int], Config], widths: Iterable[int]) -> Config:
    best = min((build(w) for w in widths), key=lambda c: abs(c.parameters() - parameters))
    if abs(best.parameters() / parameters - 1) > TOLERANCE:
        raise ValueError(
            f"no width gives {parameters:,} parameters; the nearest model has {best.parameters():,}"
        )
    return best


def _scaled(config: ModelConfig, factor: float) -> ModelConfig:
    """All widths of the trunk times a factor."""

    def scaled(channels: int) -> int:
        return max(1, round(channels * factor))

    blocks = tuple(
        block.model_copy(update={"layers": tuple((k, scaled(n)) for k, n in block.layers)})
        for block in config.blocks
    )
    inputs = None if config.input_channels is None else scaled(config.input_channels)
    return config.model_copy(update={"blocks": blocks, "input_channels": inputs})
