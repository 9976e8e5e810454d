"""The PyTorch model of a configuration."""

from __future__ import annotations

from model.architecture.gcnn import GCNN
from model.architecture.lstm import LSTM
from model.core.config import LSTMConfig, ModelConfig


def build(config: ModelConfig | LSTMConfig, start_id: int) -> GCNN | LSTM:
    """A model with fresh weights; `start_id` begins every text."""
    if isinstance(config, LSTMConfig):
        return LSTM(config, start_id)
    return GCNN(config, start_id)
