"""Whatever callers send, and whenever they leave, the scheduler goes on and serves who stays."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from app.engine.batches import Assignment, flat_batch
from app.engine.policy import POLICY, Budget
from app.engine.scheduler import Scheduler
from app.engine.sequence import Generation, Sequence
from app.engine.turns import CallerQueue
from tests.engine.test_scheduler import GREEDY, FakeSession, settle, step, text

CONTEXTS = (0, 3, 60, 100)


@dataclass
class Sent:
    """A request's sequences, and before which batches its caller leaves and comes."""

    queue: CallerQueue
    sequences: list[Sequence]
    leaves: int
    comes: int


def after(context: int, length: int, kind: str) -> Sequence:
    """A text of so many tokens after a context, a text with distributions, or a prompt."""
    tokens = np.arange(context + length + 1) % 10
    if kind == "text":
        return Sequence(tokens, score_from=context)
    if kind == "next":
        return Sequence(tokens, score_from=len(tokens) - 1, follow="distribution")
    if kind == "named":
        return Sequence(tokens, score_from=context, top=(3, 4))
    first = context if kind == "echo" else len(tokens) - 1
    return Sequence(tokens, score_from=first, follow=Generation(GREEDY, 5, frozenset()))


def choices(length: int, count: int) -> list[Sequence]:
    """Choices that share a prompt."""
    tokens = np.arange(length + 1) % 10
    shared = Sequence(tokens, score_from=length)
    follow = Generation(GREEDY, 4, frozenset())
    return [shared, *(Sequence(tokens, length, 0, follow, shared) for _ in range(count))]


one = st.builds(
    after,
    st.sampled_from(CONTEXTS),
    st.sampled_from((1, 5, 30, 100, 300, 510)),
    st.sampled_from(("text", "text", "next", "named", "prompt", "echo")),
)
requests = st.builds(
    Sent,
    st.builds(CallerQueue, st.booleans()),
    st.lists(one, min_size=1, max_size=4) | st.builds(choices, st.integers(1, 90), st.just(4)),
    st.integers(1, 40) | st.just(10_000),
    st.integers(0, 15),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(requests, min_size=1, max_size=12),
    st.sampled_from((1, 2)),
    st.sampled_from((2, 3, 8)),
    st.sampled_from((101, 217)),
)
def test_whoever_leaves_at_whatever_time_all_others_are_served(
    sent: list[Sent], workers: int, slots: int, receptive_field: int
) -> None:
    made = Scheduler(receptive_field, Budget(512, 64, 128), slots, workers)
    running: deque[list[Assignment]] = deque()
    for number in range(1000):
        for request in sent:
            if request.comes == number:
                made.add(request.queue, request.sequences)
            if request.leaves == number:
                for sequence in request.sequences:
                    made.cancel(sequence)
        if number > 15 and made.idle and not running:
            break
        for sequence in (s for request in sent for s in request.sequences):
            sequence.tokens_read = len(sequence.generated)
        if picked := made.pick():
            running.append(picked)
        if running and (not picked or len(running) == workers):
            oldest = running.popleft()
            settle(made, oldest, FakeSession().run(flat_batch(oldest, FakeSession())))
    assert all(sequence.closed for request in sent for sequence in request.sequences)
    assert made.idle
    assert len(made.states.free) == slots
    assert made.running_rows == 0
    assert not any(request.queue.states for request in sent)


def test_a_caller_that_leaves_after_two_turns_in_a_batch_does_not_end_the_engine() -> None:
    made = Scheduler(217, Budget(600, 64), 8)
    first = after(0, POLICY.new_rows + 20, "text")
    second = after(300, 30, "text")  # its halo does not fit into the rest of the batch
    queue = CallerQueue()
    made.add(queue, [first, second])
    made.add(CallerQueue(), [text(2)])
    while first.computed < first.rows:
        step(made)
    for sequence in (first, second):
        made.cancel(sequence)
    while not made.idle:
        step(made)
    assert queue.turns is None
