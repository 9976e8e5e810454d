"""The padded graph that generic servers run computes what convlm's model does."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnxscript import ir

from model.architecture.gcnn import GCNN
from model.core.config import Block, HashedNgrams, ModelConfig
from model.core.graph import LOGPROBS, TARGETS, TOKENS
from model.evaluation.scoring import logprobs
from tests.bench.peers.graph import PaddedGraph

BLOCKS = (Block(layers=((3, 24),), residual=False), Block(layers=((2, 24),), dilation=3))
NGRAMS = (HashedNgrams(order=3, rows=64, channels=8),)
SOFTMAXES = {
    "adaptive": {"cutoffs": (40, 200), "ngrams": NGRAMS, "clip": 1.5},
    "tied": {"tied": True, "input_channels": 16},
}


@pytest.mark.parametrize("tables", ["bytes", "float16"])
@pytest.mark.parametrize("softmax", SOFTMAXES)
def test_texts_side_by_side_score_as_each_alone(softmax: str, tables: str) -> None:
    torch.manual_seed(3)
    config = ModelConfig(vocabulary=400, embedding=24, blocks=BLOCKS, **SOFTMAXES[softmax])
    model = GCNN(config, start_id=0)
    with torch.no_grad():
        for ngram in model.ngrams:
            ngram.table.weight.normal_()
    model = model.stored() if tables == "bytes" else model.folded()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half().float())
    rng = np.random.default_rng(0)
    texts = [np.array([0, *rng.integers(1, 400, n)]) for n in (1, 30, 7)]
    longest = max(map(len, texts)) - 1
    tokens = np.zeros((len(texts), longest), np.int64)
    targets = np.full((len(texts), longest), -1, np.int64)
    for place, ids in enumerate(texts):
        tokens[place, : len(ids) - 1], targets[place, : len(ids) - 1] = ids[:-1], ids[1:]
    raw = ir.to_proto(PaddedGraph(model).build()).SerializeToString()
    session = ort.InferenceSession(raw, providers=["CPUExecutionProvider"])
    (found,) = session.run([LOGPROBS], {TOKENS: tokens, TARGETS: targets})
    for row, ids in zip(found, texts, strict=True):
        np.testing.assert_allclose(row[: len(ids) - 1], logprobs(model, ids), atol=1e-4)
        assert not row[len(ids) - 1 :].any()
