"""The PyTorch model: gates, causality, start symbols, weight normalisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from model.architecture import rounding
from model.architecture.causal import CausalModel
from model.architecture.gates import gated
from model.architecture.gcnn import GCNN
from model.architecture.lstm import LSTM
from model.core.config import Block, LSTMConfig, ModelConfig
from model.core.gates import GATES, GateName
from model.evaluation.scoring import logprobs

BLOCKS = (
    Block(layers=((3, 12),), residual=False),
    Block(layers=((1, 8), (4, 8), (1, 20))),
    Block(layers=((2, 20),)),
    Block(layers=((1, 6), (3, 20)), dilation=2),
)


def small(gate: GateName = "glu", **change: object) -> GCNN:
    torch.manual_seed(0)
    fields = {"vocabulary": 50, "embedding": 12, "blocks": BLOCKS, "gate": gate} | change
    return GCNN(ModelConfig.model_validate(fields), start_id=0).eval()


def test_gates_compute_their_formulas() -> None:
    x = torch.randn(5, 8, dtype=torch.float64)
    a, b = x[:, :4], x[:, 4:]
    torch.testing.assert_close(gated(x, GATES["glu"]), a * torch.sigmoid(b))
    torch.testing.assert_close(gated(x, GATES["gtu"]), torch.tanh(a) * torch.sigmoid(b))
    torch.testing.assert_close(gated(x, GATES["bilinear"]), a * b)
    torch.testing.assert_close(gated(x, GATES["relu"]), x * (x > 0))
    torch.testing.assert_close(gated(x, GATES["tanh"]), torch.tanh(x))
    torch.testing.assert_close(gated(x, GATES["linear"]), x)


@pytest.mark.parametrize("gate", list(GATES))
def test_a_convolution_sums_its_taps_newest_first(gate: GateName) -> None:
    conv = small(gate).folded().blocks[0].layers[0]
    x = torch.randn(1, 6, 12)
    taps = conv.weight.unflatten(1, (3, 12))
    expected = conv.bias + sum(
        (x[:, 4 - tap] @ taps[:, tap].T for tap in range(3)), start=torch.zeros(1)
    )
    torch.testing.assert_close(conv(x, None)[:, 4], gated(expected, GATES[gate]))
    assert conv.weight.shape[0] == 12 * GATES[gate].halves


@pytest.mark.parametrize("gate", list(GATES))
def test_a_later_token_changes_no_earlier_logit(gate: GateName) -> None:
    model = small(gate)
    tokens = torch.randint(1, 50, (1, 20))
    changed = tokens.clone()
    changed[0, 11:] = torch.randint(1, 50, (9,))
    torch.testing.assert_close(model(tokens)[:, :11], model(changed)[:, :11], rtol=0, atol=0)


def test_a_prediction_depends_on_the_receptive_field_and_nothing_before() -> None:
    model = small()
    field = model.config.receptive_field
    assert field == 1 + 2 + 3 + 1 + 2 * 2
    tokens = torch.randint(1, 50, (1, 20))
    for place in range(20):
        changed = tokens.clone()
        changed[0, place] = tokens[0, place] % 49 + 1
        differs = bool((model(tokens)[0, -1] != model(changed)[0, -1]).any())
        assert differs == (place >= 20 - field)


def test_a_clip_bounds_what_enters_every_block() -> None:
    model = small(clip=0.25)
    free = small()
    with torch.no_grad():
        for one in (model, free):
            for parameter in one.parameters():
                parameter.mul_(30)
    entered = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda module, inputs: entered.append(inputs[0]))
    tokens = torch.randint(1, 50, (1, 20))
    bounded, grown = model.hidden(tokens).abs().max(), free.hidden(tokens).abs().max()
    assert len(entered) == len(model.blocks)
    assert all(x.abs().max() <= 0.25 for x in entered)
    assert bounded < grown / 100


def test_what_lies_before_a_start_symbol_is_not_seen() -> None:
    model = small()
    first, second = torch.randint(1, 50, (1, 9)), torch.randint(1, 50, (1, 9))
    start = torch.zeros(1, 1, dtype=torch.int64)
    alone = model(torch.cat([start, second], 1))
    behind = model(torch.cat([start, first, start, second], 1))
    torch.testing.assert_close(behind[:, 10:], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("start_id", [0, 3])
@pytest.mark.parametrize("kind", ["gcnn", "lstm"])
def test_n_grams_do_not_reach_before_a_start_symbol(kind: str, start_id: int) -> None:
    fields = {
        "vocabulary": 50,
        "embedding": 6,
        "ngrams": [{"order": 4, "rows": 97, "channels": 4}],
    }
    model: CausalModel
    if kind == "gcnn":
        blocks = [{"layers": [[2, 6]], "dilation": 3}]
        model = GCNN(ModelConfig.model_validate(fields | {"blocks": blocks}), start_id)
    else:  # its state runs on, what enters it does not
        model = LSTM(LSTMConfig.model_validate(fields | {"lstm": [6]}), start_id)
        model.hidden = lambda x: model.embedded(x, model.positions(x))  # type: ignore[method-assign]
    for ngram in model.ngrams:
        torch.nn.init.normal_(ngram.table.weight)  # type: ignore[union-attr, arg-type]
    first, second = torch.randint(4, 50, (1, 9)), torch.randint(4, 50, (1, 9))
    start = torch.full((1, 1), start_id)
    alone = model.hidden(torch.cat([start, second], 1))
    behind = model.hidden(torch.cat([start, first, start, second], 1))
    torch.testing.assert_close(behind[:, 10:], alone, rtol=1e-5, atol=1e-6)


def test_folding_the_weight_normalisation_changes_no_output() -> None:
    model = small()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("original0"):
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    tokens = torch.randint(0, 50, (2, 15))
    torch.testing.assert_close(model.folded()(tokens), model(tokens), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_a_stored_model_has_rounded_weights_and_no_normalisation(tied: bool) -> None:
    softmax = {"tied": True, "head_channels": 12} if tied else {}
    model = small(ngrams=[{"order": 2, "rows": 500, "channels": 4}], **softmax)
    with torch.no_grad():
        for ngram in model.ngrams:
            ngram.table.weight.normal_()
    for name, parameter in model.stored().named_parameters():
        assert "original" not in name
        if ("ngrams" in name and "table" in name) or (name == "embedding.weight" and not tied):
            torch.testing.assert_close(
                parameter, rounding.round_to_bytes(parameter), rtol=0, atol=0
            )
            assert len(parameter[:, 0].unique()) <= 255
        elif not name.endswith("bias"):
            torch.testing.assert_close(parameter, parameter.half().float(), rtol=0, atol=0)


def test_an_adaptive_softmax_is_a_distribution_and_its_losses_are_its_entries() -> None:
    model = small(cutoffs=(7, 20))
    tokens = torch.randint(1, 50, (2, 30))
    logprobs_ = model(tokens)
    torch.testing.assert_close(logprobs_.exp().sum(-1), torch.ones(2, 30))
    targets = torch.randint(0, 50, (2, 30))
    targets[0, 3] = -100
    expected = -logprobs_.gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)
    losses = model.output.losses(model.hidden(tokens).flatten(0, 1), targets.clamp(min=0).flatten())
    torch.testing.assert_close(losses.view(2, 30), expected)
    expected[0, 3] = 0
    torch.testing.assert_close(model(tokens, targets), expected.sum())


def test_an_adaptive_softmax_has_the_formula_of_its_clusters() -> None:
    model = small(cutoffs=(7, 20))
    hidden = torch.randn(5, 20)
    head = torch.log_softmax(model.output.head(hidden), -1)
    narrow, wide = model.output.tails[1]
    assert narrow.weight.shape == (20 // 16, 20)
    tail = torch.log_softmax(wide(narrow(hidden)), -1)
    torch.testing.assert_close(
        model.output.logprobs(hidden)[:, 20:], head[:, 8, None] + tail, rtol=1e-5, atol=1e-5
    )


def test_scoring_in_pieces_equals_scoring_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    ids = np.concatenate([[0], np.random.default_rng(0).integers(1, 50, 200)])
    whole = logprobs(model, ids)
    monkeypatch.setattr("model.evaluation.scoring._PIECE", 17)
    np.testing.assert_allclose(logprobs(model, ids), whole, atol=1e-5)


@pytest.mark.parametrize("weight_norm", [True, False])
@pytest.mark.parametrize("change", [{"tied": True}, {"tied": False}, {"cutoffs": (9, 50)}])
def test_the_configuration_counts_the_models_parameters(
    weight_norm: bool, change: dict[str, object]
) -> None:
    model = small(weight_norm=weight_norm, head_channels=12, input_channels=14, **change)
    assert model.config.parameters() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("gate", list(GATES))
def test_every_gate_starts_with_the_variance_that_it_gets(gate: GateName) -> None:
    """So that a comparison of gates does not compare beginnings."""
    torch.manual_seed(0)
    fields = {"vocabulary": 500, "embedding": 128, "gate": gate}
    config = ModelConfig.model_validate(fields | {"blocks": [{"layers": [[4, 128]]}]})
    model = GCNN(config, 0)
    x = model.embedded(torch.randint(1, 500, (4, 100)))
    ratio = float((model.blocks[0].layers[0](x, None).std() / x.std()).detach())
    assert 0.75 < ratio < 1.25


def test_blocks_that_begin_as_the_identity_pass_on_what_enters() -> None:
    block = {"layers": [[3, 12], [1, 12]]}
    model = small(weight_norm=False, residual_scale=1.0, blocks=(block, block, block))
    tokens = torch.randint(1, 50, (2, 15))
    assert (model.hidden(tokens) - model.embedded(tokens)).abs().max() > 0.01
    before = [layer.weight.clone() for b in model.blocks for layer in b.layers]
    model.begin_as_identity()
    assert (model.hidden(tokens) - model.embedded(tokens)).abs().max() < 1e-3
    after = [layer.weight for b in model.blocks for layer in b.layers]
    changed = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert changed == [False, True] * 3  # a layer that is small in front would do as well, slowly
    assert all(weight.std() < 1e-3 for weight in after[1::2])


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({}, "weight_norm"),
        ({"weight_norm": False}, "residual_scale"),
        (
            {
                "weight_norm": False,
                "residual_scale": 1.0,
                "blocks": ({"layers": [[3, 12]], "residual": False},),
            },
            "residual blocks",
        ),
    ],
)
def test_blocks_that_cannot_begin_as_the_identity(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        small(**fields).begin_as_identity()


def test_a_weight_that_float16_does_not_hold_is_not_stored() -> None:
    model = small(weight_norm=False)
    with torch.no_grad():
        model.blocks[0].layers[0].weight[0, 0] = 1e6
    with pytest.raises(ValueError, match="float16"):
        model.stored()
