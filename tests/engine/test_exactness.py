"""A text's log-probabilities are the same bits however it is cut and whatever runs beside it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.batches import flat_batch
from app.engine.policy import Budget
from app.engine.runtime.session import Session
from app.engine.sampling.draw import Sampling
from app.engine.scheduler import Scheduler
from app.engine.sequence import Generated, Generation, Scored, Sequence, top_of
from app.engine.turns import CallerQueue
from model.architecture.gcnn import GCNN
from model.core.bundle import Bundle, load
from model.core.config import ModelConfig
from model.core.flat_batch import whole_text
from model.core.graph import Floats, Indices, Precision
from model.core.tokenizer import Tokenizer
from model.data.corpus import Corpus
from model.export.bundle_writer import export
from tests.engine.test_scheduler import settle

PAPER_MODELS = ("gcnn-8", "gcnn-8b", "gcnn-9", "gcnn-13", "gcnn-14", "gcnn-14b")
RECIPES = (*PAPER_MODELS, "prose-18m-3")
TOKENS = st.integers(2, 399)
TEXT = st.lists(TOKENS, min_size=1, max_size=60)
GREEDY = Sampling(0.0, 0, 1.0, 0, 0)


@pytest.fixture(scope="module", params=["tiny", "adaptive", *RECIPES])
def served(
    request: pytest.FixtureRequest,
    tokenizer: Tokenizer,
    calibration: Corpus,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    """Bundles of both kinds of softmax, with and without n-grams, every model of the paper, and the
    one that is shipped.

    Those of recipes have their blocks, kernels and dilations, and a sixteenth of the channels
    unless pytest runs with `--full-width`.
    """
    if request.param not in RECIPES:
        return request.getfixturevalue(request.param)  # type: ignore[no-any-return]
    shrink = 1 if request.config.getoption("--full-width") else 16
    model = random_model(request.param, tokenizer, shrink)
    folder = tmp_path_factory.mktemp("bundles") / request.param
    export(model, tokenizer, folder, request.param, calibration=calibration)
    return load(folder)


def random_model(name: str, tokenizer: Tokenizer, shrink: int) -> GCNN:
    """Random weights in the shape of a recipe, for the tests' vocabulary."""
    fields = tomllib.loads(Path(f"model/recipes/{name}.toml").read_text())["model"]
    for block in fields["blocks"]:
        block["layers"] = [[kernel, channels // shrink] for kernel, channels in block["layers"]]
    width = "input_channels" if "input_channels" in fields else "embedding"
    fields[width] //= shrink
    for ngram in fields.get("ngrams", []):
        ngram["rows"] = 64
    # at a scale of 1 random blocks grow until rounding is all there is
    fields.pop("residual_scale", None)
    fields |= {"vocabulary": tokenizer.size, "cutoffs": [51, 120]}
    torch.manual_seed(3)
    return GCNN(ModelConfig.model_validate(fields), tokenizer.start_id).eval()


@pytest.fixture(scope="module", params=["float32", "float16", "int8"])
def session(served: Bundle, request: pytest.FixtureRequest) -> Session:
    return opened(served, request.param, threads=2, slots=8)


def opened(served: Bundle, precision: Precision, threads: int, slots: int) -> Session:
    return Session(served, "cpu", threads, slots, precision)


def run(
    session: Session, requests: list[list[Sequence]], budget: int, slots: int
) -> dict[Sequence, Floats]:
    """Runs everything to its end; the scores of each sequence in order."""
    scheduler = Scheduler(session.config.receptive_field, Budget(budget, budget), slots)
    for request in requests:
        scheduler.add(CallerQueue(), request)
    got: dict[Sequence, list[Floats]] = {s: [] for r in requests for s in r}
    while picked := scheduler.pick():
        assert len({a.sequence for a in picked}) == len(picked)
        batch = flat_batch(picked, session)
        for sequence, event in settle(scheduler, picked, session.run(batch)):
            if isinstance(event, Scored):
                got[sequence].append(event.logprobs)
            elif isinstance(event, Generated):
                got[sequence].append(np.array([event.logprob], np.float32))
    assert scheduler.idle
    assert len(scheduler.states.free) == slots
    return {s: np.concatenate([np.zeros(0, np.float32), *parts]) for s, parts in got.items()}


def expected_scores(session: Session, tokens: Indices) -> Floats:
    scores = session.run(whole_text(tokens, session.taps, session.multiple)).logprobs
    return scores[: len(tokens) - 1]


def ids(text: list[int]) -> Indices:
    return np.array([0, *text], np.int64)


def assert_same(session: Session, got: Floats, expected: Floats) -> None:
    """The same bits, which float16 does not promise."""
    if session.precision == "float16":
        # random weights give log-probabilities of -80, which half precision knows to 2^-11 of them
        np.testing.assert_allclose(got, expected, rtol=2**-11, atol=0.02)
    else:
        np.testing.assert_array_equal(got, expected)


@settings(max_examples=60)
@given(st.lists(TEXT, min_size=1, max_size=6), st.integers(1, 40), st.integers(0, 4), st.data())
def test_pieces_of_any_size_mixed_with_any_others_give_the_same_bits(
    session: Session, texts: list[list[int]], budget: int, slots: int, data: st.DataObject
) -> None:
    sequences = [Sequence(ids(text)) for text in texts]
    grouping = data.draw(st.lists(st.integers(0, 2), min_size=len(texts), max_size=len(texts)))
    requests = [[s for s, g in zip(sequences, grouping, strict=True) if g == n] for n in range(3)]
    got = run(session, [r for r in requests if r], budget, slots)
    for sequence in sequences:
        assert_same(session, got[sequence], expected_scores(session, sequence.tokens))


@settings(max_examples=30)
@given(TEXT, TEXT, st.integers(1, 30), st.integers(0, 2))
def test_a_context_gives_the_same_bits_as_the_text_that_holds_it(
    session: Session, context: list[int], text: list[int], budget: int, slots: int
) -> None:
    tokens = ids([*context, *text])
    sequence = Sequence(tokens, score_from=len(context))
    got = run(session, [[sequence]], budget, slots)[sequence]
    assert_same(session, got, expected_scores(session, tokens)[len(context) :])


@settings(max_examples=30)
@given(TEXT, TEXT, st.integers(0, 200))
def test_a_later_token_changes_no_earlier_logprob(
    session: Session, text: list[int], other: list[int], cut: int
) -> None:
    cut %= len(text)
    changed = [*text[:cut], *other]
    one, two = expected_scores(session, ids(text)), expected_scores(session, ids(changed))
    assert_same(session, one[:cut], two[:cut])


@settings(max_examples=30)
@given(
    st.lists(st.tuples(TEXT, st.integers(1, 25), st.booleans()), min_size=1, max_size=5),
    st.lists(TEXT, max_size=3),
    st.integers(1, 40),
    st.integers(1, 6),
)
def test_a_stream_scores_its_tokens_as_the_whole_text_does(
    session: Session,
    prompts: list[tuple[list[int], int, bool]],
    texts: list[list[int]],
    budget: int,
    slots: int,
) -> None:
    streams = []
    for prompt, count, echo in prompts:
        generation = Generation(GREEDY, count, frozenset())
        start = 0 if echo else len(prompt)
        streams.append(Sequence(ids(prompt), score_from=start, follow=generation))
    others = [Sequence(ids(text)) for text in texts]
    got = run(session, [*([s] for s in streams), others], budget, slots)
    for stream, (prompt, count, echo) in zip(streams, prompts, strict=True):
        scores = got[stream]
        assert len(scores) == count + (len(prompt) if echo else 0)
        # the last token generated is not appended: nothing follows from it
        tokens = np.concatenate([stream.tokens, np.array(stream.generated, np.int64)])
        known = expected_scores(session, tokens) if len(tokens) > 1 else np.zeros(0, np.float32)
        expected = known if echo else known[len(prompt) :]
        assert_same(session, scores[: len(expected)], expected)
    for other in others:
        assert_same(session, got[other], expected_scores(session, other.tokens))


@settings(max_examples=30)
@given(TEXT, st.integers(1, 5), st.integers(1, 30))
def test_alternatives_do_not_change_a_score(
    session: Session, text: list[int], top: int, budget: int
) -> None:
    plain, ranked = Sequence(ids(text)), Sequence(ids(text), top=top)
    got = run(session, [[plain], [ranked]], budget, 4)
    assert_same(session, got[plain], got[ranked])


def test_alternatives_are_those_of_whole_distributions_to_the_bit(session: Session) -> None:
    size = session.config.vocabulary
    texts = [ids(np.random.default_rng(n).integers(2, 400, n).tolist()) for n in (1, 17, 40)]
    listed = [Sequence(text, top=top) for text, top in zip(texts, (1, 20, 5), strict=True)]
    plain = Sequence(texts[0])
    named = [Sequence(text, top=tuple(range(size))) for text in texts]
    got = events(session, [*listed, plain, *named])
    for sequence, other in zip(listed, named, strict=True):
        (one,), (every,) = got[sequence], got[other]
        assert one.top is not None
        assert every.top is not None
        expected = top_of(every.top.logprobs, sequence.graph_top)
        assert_same(session, one.top.logprobs, expected.logprobs)
        if session.precision != "float16":  # there, near ones may change places
            np.testing.assert_array_equal(one.top.ids, expected.ids)
            np.testing.assert_array_equal(one.ranks, every.ranks)
        assert_same(session, one.logprobs, every.logprobs)


def events(session: Session, sequences: list[Sequence]) -> dict[Sequence, list[Scored]]:
    """What the scored rows of sequences give, in one batch."""
    scheduler = Scheduler(session.config.receptive_field, Budget(512, 512), 1)
    scheduler.add(CallerQueue(), sequences)
    picked = scheduler.pick()
    got: dict[Sequence, list[Scored]] = {sequence: [] for sequence in sequences}
    for sequence, event in settle(scheduler, picked, session.run(flat_batch(picked, session))):
        if isinstance(event, Scored):
            got[sequence].append(event)
    assert scheduler.idle
    return got


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_no_bit(
    served: Bundle, session: Session, threads: int
) -> None:
    tokens = ids([int(t) for t in np.random.default_rng(0).integers(2, 400, 300)])
    other = opened(served, session.precision, threads, slots=1)
    assert_same(session, expected_scores(other, tokens), expected_scores(session, tokens))
