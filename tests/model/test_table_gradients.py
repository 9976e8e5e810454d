"""Gradients of looked-up tables, gathered for a whole update."""

from __future__ import annotations

import torch
from torch import nn

from model.config import ModelConfig
from model.gcnn import GCNN
from model.table_gradients import TableGradients


def model(*, tied: bool) -> GCNN:
    """Of 40 tokens, with hashed 2-grams."""
    torch.manual_seed(4)
    fields = {
        "vocabulary": 40,
        "embedding": 8,
        "tied": tied,
        "blocks": [{"layers": [[2, 8]]}],
        "ngrams": [{"order": 2, "rows": 30, "channels": 8}],
    }
    found = GCNN(ModelConfig.model_validate(fields), 0)
    for each in found.ngrams:
        nn.init.normal_(each.table.weight)  # type: ignore[union-attr, arg-type]
    return found


def test_gradients_of_several_passes_are_those_of_dense_ones() -> None:
    for tied in (False, True):
        dense, gathered = model(tied=tied), model(tied=tied)
        tables = TableGradients(gathered)
        for update in range(3):  # the second begins with zeros again
            dense.zero_grad()
            gathered.zero_grad()
            random = torch.Generator().manual_seed(update)
            for _ in range(2):
                tokens = torch.randint(40, (3, 7), generator=random)
                targets = torch.randint(40, (3, 7), generator=random)
                dense(tokens, targets).backward()
                gathered(tokens, targets).backward()
            tables.gather()
            for own, its in zip(gathered.parameters(), dense.parameters(), strict=True):
                assert own.grad is not None
                assert its.grad is not None
                assert own.grad.layout == torch.strided
                torch.testing.assert_close(own.grad, its.grad)


def test_what_no_pass_has_read_has_no_gradient() -> None:
    own = model(tied=False)
    tables = TableGradients(own)
    tables.gather()
    assert own.embedding.weight.grad is None
