"""Who gets rows, without ONNX: a fake session whose scores are a function of the tokens."""

from __future__ import annotations

import math

import numpy as np

from app.engine.batches import Assignment, flat_batch, results
from app.engine.policy import POLICY, Budget
from app.engine.runtime.outputs import Alternatives, Outputs
from app.engine.sampling.distributions import NextDistributions
from app.engine.sampling.draw import Sampling
from app.engine.scheduler import Scheduler
from app.engine.sequence import (
    MAX_GRAPH_ALTERNATIVES,
    Event,
    Failed,
    Finished,
    Generated,
    Generation,
    Scored,
    Sequence,
)
from app.engine.turns import CallerQueue
from model.core.flat_batch import FlatBatch
from model.core.graph import Floats, Precision

GREEDY = Sampling(0.0, 0, 1.0, 0, 0)
R = 5


class FakeSession:
    """Scores a target by its id; the most probable next token is always 7."""

    taps = ((1, 3),)
    precision: Precision = "float32"
    multiple = 1
    tail_count = 0
    build = "fake"

    def check(self) -> None:
        pass

    def run(self, batch: FlatBatch) -> Outputs:
        head = np.full((len(batch.next_rows), 10), -9.0, np.float32)
        head[:, 7] = -0.5
        logprobs = -batch.alternative_targets.astype(np.float32)
        ids = np.full((len(logprobs), batch.alternative_count), 7)
        listed = Alternatives(
            logprobs, np.ones(len(logprobs), np.int64), ids, np.full(ids.shape, -0.5, np.float32)
        )
        return Outputs(-batch.targets.astype(np.float32), NextDistributions(head), listed)


def scheduler(
    tokens: int = 32, stream_tokens: int = 16, slots: int = 100, workers: int = 1
) -> Scheduler:
    shared = None if workers == 1 else 128
    return Scheduler(R, Budget(tokens, stream_tokens, shared), slots, workers)


def text(length: int) -> Sequence:
    return Sequence(np.arange(length + 1) % 10)


def stream(count: int, prompt: int = 3) -> Sequence:
    generation = Generation(GREEDY, count, frozenset())
    return Sequence(np.arange(prompt + 1), score_from=prompt, follow=generation)


def add(made: Scheduler, *sequences: Sequence) -> CallerQueue:
    request = CallerQueue()
    made.add(request, sequences)
    return request


def step(made: Scheduler) -> tuple[list[Assignment], list[tuple[Sequence, Event]]]:
    picked = made.pick()
    if not picked:
        return picked, []
    result = FakeSession().run(flat_batch(picked, FakeSession()))
    return picked, settle(made, picked, result)


def settle(
    made: Scheduler, picked: list[Assignment], outputs: Outputs
) -> list[tuple[Sequence, Event]]:
    """The events of a batch, whose run ends."""
    events = results(picked, outputs)
    return events + [(sequence, Finished()) for sequence in made.finish(picked)]


def rows(picked: list[Assignment]) -> int:
    return sum(len(a.piece.tokens) for a in picked)


def test_a_batch_of_waiting_texts_is_full() -> None:
    made = scheduler()
    add(made, text(100))
    add(made, text(3))
    for _ in range(3):
        assert rows(step(made)[0]) == 32
    assert rows(step(made)[0]) == 7
    assert made.idle


def test_a_short_text_is_not_kept_waiting_by_a_long_one() -> None:
    made = scheduler(tokens=256)
    long, short = text(100_000), text(20)
    add(made, long)
    step(made)
    add(made, short)
    events = step(made)[1]
    assert (short, Finished()) in events
    assert not long.closed


def test_texts_of_some_hundred_tokens_end_in_the_order_of_their_coming() -> None:
    made = scheduler(tokens=256)
    texts = [text(300) for _ in range(12)]
    for one in texts:
        add(made, one)
    finished: list[Sequence] = []
    while not made.idle:
        finished += [s for s, e in step(made)[1] if e == Finished()]
        begun = sum(1 for one in texts if one.computed and not one.closed)
        assert begun <= 2  # else all would end late
    assert finished == texts


def test_a_crowd_has_batches_of_twice_the_rows_but_not_beside_streams() -> None:
    for count in (POLICY.busy_callers - 1, POLICY.busy_callers):
        made = scheduler(tokens=256, stream_tokens=64)
        for _ in range(count):
            add(made, text(1000))
        assert rows(made.pick()) == (512 if count == POLICY.busy_callers else 256)
    made = scheduler(tokens=256, stream_tokens=64)
    for _ in range(POLICY.busy_callers):
        add(made, text(1000))
    add(made, stream(5))
    assert rows(made.pick()) <= 64


def test_texts_that_would_fit_into_one_batch_are_shared_among_workers() -> None:
    made = scheduler(tokens=256, workers=2)
    waiting = [text(30) for _ in range(7)]
    for one in waiting:
        add(made, one)
    taken = [[a.sequence for a in made.pick()] for _ in range(3)]
    assert taken == [waiting[:4], waiting[4:], []]  # half of 210 rows, then 90, which are few
    made = scheduler(tokens=256, workers=2)
    for _ in range(7):
        add(made, text(100))
    assert rows(made.pick()) == 256  # more than a batch: nobody goes without
    made = scheduler(tokens=256, workers=2)
    add(made, text(10_000))
    step(made)
    step(made)  # it is no longer young
    for one in (few := [text(20) for _ in range(7)]):
        add(made, one)
    assert {a.sequence for a in made.pick()} > set(few)  # the next worker has the long one


def test_each_of_three_workers_has_a_third() -> None:
    made = scheduler(tokens=256, workers=3)
    waiting = [text(30) for _ in range(6)]
    for one in waiting:
        add(made, one)
    assert [a.sequence for a in made.pick()] == waiting[:2]


def test_a_share_is_of_what_no_running_batch_holds() -> None:
    made = scheduler(tokens=256, workers=2)
    add(made, text(400))
    made.pick()  # the first of its rows, still running
    few = [text(20) for _ in range(POLICY.busy_callers)]
    for one in few:
        add(made, one)
    assert [a.sequence for a in made.pick()] == few[: POLICY.busy_callers // 2]


def test_few_rows_are_left_to_a_worker_that_runs() -> None:
    made = scheduler(tokens=256, workers=2)
    first, second, third, fourth = (text(n) for n in (40, 50, 60, 5))
    add(made, first)
    running = made.pick()
    add(made, second)
    assert made.pick() == []  # 90 rows in all
    add(made, third)
    beside = made.pick()  # 150: worth a second worker
    assert [a.sequence for a in beside] == [second, third]
    add(made, fourth)
    made.drop(beside)
    assert made.pick() == []  # the first still runs
    made.drop(running)
    assert [a.sequence for a in made.pick()] == [fourth]


def test_few_rows_go_with_streams_whatever_else_runs() -> None:
    made = scheduler(tokens=256, stream_tokens=64, workers=2)
    add(made, text(20))
    made.pick()
    one, other = stream(5), text(10)
    add(made, one)
    add(made, other)
    assert {a.sequence for a in made.pick()} == {one, other}


def test_few_rows_do_not_wait_beside_streams_whose_batches_are_small() -> None:
    made = scheduler(tokens=256, stream_tokens=64, workers=2)
    add(made, stream(5))
    step(made)
    made.pick()  # its next token
    add(made, one := text(100))
    assert [a.sequence for a in made.pick()] == [one]


def test_rows_that_the_next_batch_has_no_room_for_do_not_wait() -> None:
    made = scheduler(tokens=256, stream_tokens=64, workers=2)
    add(made, text(20))
    made.pick()
    add(made, one := Sequence(np.arange(50) % 10, top=(1, 2)))
    assert [a.sequence for a in made.pick()] == [one]


def test_rows_of_halos_are_rows() -> None:
    made = scheduler(tokens=256, workers=2)
    add(made, text(28))
    made.pick()
    behind = [Sequence(np.arange(12) % 10, score_from=10) for _ in range(19)]
    add(made, *behind)
    assert made.pick() == []  # a row each and a halo of four: 123 in all
    add(made, text(5))
    assert rows(made.pick()) == 100


def test_a_text_that_goes_on_is_given_what_those_who_have_just_come_leave() -> None:
    for left in (10, 1000):
        made = scheduler(tokens=256)
        add(made, old := text(512 + left))
        step(made)
        step(made)
        add(made, text(1000))
        picked = made.pick()
        assert rows(picked) == 256
        (rows_given,) = (a.piece.rows for a in picked if a.sequence is old)
        assert rows_given == min(left, 64)


def test_a_row_that_is_followed_counts_once_whatever_turns_its_text_takes() -> None:
    made = scheduler(tokens=512, stream_tokens=2)
    add(made, Sequence(np.arange(400) % 10, follow="distribution"))
    assert rows(made.pick()) == 400


def test_what_has_just_come_goes_before_many_long_texts_which_keep_a_share() -> None:
    made = scheduler(tokens=256)
    long = [text(10_000) for _ in range(20)]
    for one in long:
        add(made, one)
    for _ in range(60):
        step(made)
    for _ in range(30):
        new = [text(64), text(100)]
        for one in new:
            add(made, one)
        before = sum(one.computed for one in long)
        events = step(made)[1]
        assert all((one, Finished()) in events for one in new)
        assert sum(one.computed for one in long) >= before + 64
    counts = [one.computed for one in long]
    assert max(counts) - min(counts) <= 2 * (512 + 128)  # turns of a crowd are twice as long


def test_a_request_of_many_texts_takes_turns_with_others() -> None:
    made = scheduler(tokens=256)
    add(made, *(text(50) for _ in range(1000)))
    other = text(100)
    add(made, other)
    assert (other, Finished()) in step(made)[1]


def test_streams_come_first_and_leave_a_share_to_the_others() -> None:
    made = scheduler(tokens=64, stream_tokens=16)
    streams = [stream(1000) for _ in range(100)]
    for one in streams:
        add(made, one)
    while made.prompts:
        step(made)
    before = {s: len(s.generated) for s in streams}
    waiting = text(10_000)
    add(made, waiting)
    for _ in range(10):
        picked, _ = step(made)
        assert rows(picked) <= 16 + R
        kinds = [a.sequence is waiting for a in picked]
        assert kinds.count(False) == 12
        assert any(kinds)
    grown = [len(s.generated) - before[s] for s in streams]
    assert max(grown) - min(grown) <= 1  # streams take turns


def test_prompts_do_not_starve_texts_nor_texts_prompts() -> None:
    made = scheduler(tokens=32, stream_tokens=32)
    add(made, *(stream(1, prompt=50) for _ in range(50)))
    add(made, text(2000))
    seen_prompt = seen_text = 0
    for _ in range(10):
        picked, _ = step(made)
        seen_prompt += any(a.sequence.follow is not None for a in picked)
        seen_text += any(a.sequence.follow is None for a in picked)
    assert seen_prompt == seen_text == 10


def test_a_prompt_costs_the_receptive_field_however_long_it_is() -> None:
    made = scheduler()
    add(made, stream(2, prompt=10_000))
    picked, events = step(made)
    assert rows(picked) == R
    assert [type(e) for _, e in events] == [Generated]
    assert rows(step(made)[0]) == 1


def test_a_batch_is_smaller_while_streams_are_open() -> None:
    made = scheduler(tokens=256, stream_tokens=16)
    add(made, text(10_000))
    assert rows(step(made)[0]) == 256
    add(made, stream(100))
    step(made)
    assert rows(step(made)[0]) == 16


def test_few_rows_of_a_batch_have_a_distribution_and_others_fill_it() -> None:
    made = scheduler(tokens=256, stream_tokens=16)
    listed = [Sequence(np.arange(101) % 10, top=(1, 2, 3)) for _ in range(3)]
    continued = [Sequence(np.arange(4), score_from=3, follow="distribution") for _ in range(40)]
    add(made, *listed)
    add(made, *continued)
    plain = text(2000)
    add(made, plain)
    finished: list[Sequence] = []
    while not made.idle:
        picked, events = step(made)
        assert sum(len(a.piece.next_rows) for a in picked) <= 16
        if not plain.closed:
            assert rows(picked) >= 128
        finished += [sequence for sequence, event in events if event == Finished()]
    assert len(finished) == 44
    assert made.counts.halo <= 44 * (R - 1)


def test_rows_with_alternatives_fill_a_batch_but_not_beside_streams() -> None:
    made = scheduler(tokens=256, stream_tokens=16)
    listed = Sequence(np.arange(1001) % 10, top=3)
    add(made, listed)
    assert rows(step(made)[0]) == 256
    add(made, stream(100))
    for _ in range(3):
        assert rows(step(made)[0]) == 16


def test_rows_with_more_alternatives_than_are_listed_have_whole_distributions() -> None:
    made = scheduler(tokens=256, stream_tokens=16)
    listed = Sequence(np.arange(101) % 10, top=MAX_GRAPH_ALTERNATIVES + 1)
    add(made, listed)
    scored = []
    while not made.idle:
        picked, events = step(made)
        assert [len(a.piece.next_rows) for a in picked] == [rows(picked)]
        assert rows(picked) <= 16
        scored += [event for _, event in events if isinstance(event, Scored)]
    ids = np.concatenate([event.top.ids for event in scored if event.top is not None])
    assert ids.shape == (100, 10)
    assert (ids[:, 0] == 7).all()


def test_more_streams_than_slots_wait_their_turn_and_all_finish() -> None:
    made = scheduler(slots=3)
    streams = [stream(5) for _ in range(20)]
    add(made, *streams)
    finished = []
    while not made.idle:
        _picked, events = step(made)
        assert len(made.streams) <= 3
        finished += [s for s, e in events if isinstance(e, Finished)]
    assert len(finished) == 20
    assert len(made.states.free) == 3


def test_choices_that_wait_for_their_prompt_keep_their_place_in_line() -> None:
    made = scheduler(tokens=4, stream_tokens=4, slots=3)
    ids = np.arange(4)
    shared = Sequence(ids, score_from=3)
    generation = Generation(GREEDY, 2, frozenset())
    choices = [Sequence(ids, score_from=3, follow=generation, parent=shared) for _ in range(2)]
    add(made, shared, *choices)
    later = [stream(2) for _ in range(4)]
    for one in later:
        add(made, one)
    step(made)
    assert shared.closed
    order = [*choices, *later]
    finished: list[Sequence] = []
    while not made.idle:
        finished += [sequence for sequence, event in step(made)[1] if event == Finished()]
    assert [sequence for sequence in finished if sequence in choices] == choices
    assert max(finished.index(choice) for choice in choices) < finished.index(order[-1])


def test_without_a_free_slot_a_text_goes_on_behind_a_halo() -> None:
    made = scheduler(tokens=16, slots=0)
    one = text(100)
    add(made, one)
    scores: list[Floats] = []
    while not made.idle:
        _, events = step(made)
        scores += [e.logprobs for _, e in events if isinstance(e, Scored)]
    np.testing.assert_array_equal(np.concatenate(scores), -one.tokens[1:].astype(np.float32))
    assert made.counts.halo == (R - 1) * (len(scores) - 1)
    assert made.counts.score == 100


def test_a_cancelled_sequence_leaves_with_its_rows_and_its_slot() -> None:
    made = scheduler(tokens=16)
    texts, streams = [text(1000) for _ in range(3)], [stream(1000) for _ in range(3)]
    for sequence in (*texts, *streams):
        add(made, sequence)
    for _ in range(5):
        step(made)
    assert len(made.states.free) < 100
    picked = made.pick()
    for sequence in (*texts, *streams):
        made.cancel(sequence)
    result = FakeSession().run(flat_batch(picked, FakeSession()))
    assert settle(made, picked, result) == []  # results of the running batch are dropped
    assert made.pick() == []
    assert made.idle
    assert len(made.states.free) == 100


def test_a_failed_batch_drops_its_sequences_alone() -> None:
    made = scheduler(tokens=16)
    lost, kept = text(10), text(300)
    add(made, lost)
    picked = made.pick()
    add(made, kept)
    assert made.drop(picked) == [lost]
    done = []
    while not made.idle:
        done += [s for s, e in step(made)[1] if isinstance(e, Finished | Failed)]
    assert done == [kept]


def test_generation_ends_at_its_limit_or_at_an_end_symbol() -> None:
    made = scheduler()
    limited = stream(3)
    ended = Sequence(np.arange(4), score_from=3, follow=Generation(GREEDY, 50, frozenset({7})))
    add(made, limited, ended)
    events: list[tuple[Sequence, Event]] = []
    while not made.idle:
        events += step(made)[1]
    reasons = {
        s: [e.finish for o, e in events if o is s and isinstance(e, Generated)]
        for s in (limited, ended)
    }
    assert reasons == {limited: [None, None, "length"], ended: ["stop"]}


def test_a_request_can_grow_while_it_waits() -> None:
    made = scheduler(tokens=16)
    request = CallerQueue()
    first, second = text(20), text(20)
    made.add(request, [first])
    step(made)
    made.add(request, [second])
    done = []
    while not made.idle:
        done += [s for s, e in step(made)[1] if isinstance(e, Finished)]
    assert done == [first, second]


def test_rows_are_counted_by_kind() -> None:
    made = scheduler(tokens=64, stream_tokens=64)
    add(made, text(10))
    add(made, stream(4, prompt=9))
    while not made.idle:
        step(made)
    counts = made.counts
    assert (counts.score, counts.prefill, counts.decode, counts.halo) == (10, R, 3, 0)


def bulk(made: Scheduler, *sequences: Sequence, patient: bool = False) -> CallerQueue:
    request = CallerQueue(bulk=True, patient=patient)
    made.add(request, sequences)
    return request


def test_bulk_has_a_quarter_while_interactive_texts_wait_and_all_afterwards() -> None:
    made = scheduler(tokens=256)
    bulk(made, heap := text(10_000))
    add(made, one := text(500))
    picked = step(made)[0]
    assert {a.sequence: a.piece.rows for a in picked} == {one: 192, heap: 64}
    while not one.closed:
        step(made)
    (only,) = step(made)[0]
    assert (only.sequence, only.piece.rows) == (heap, 256)


def test_bulk_of_any_kind_goes_on_however_much_interactive_work_waits() -> None:
    made = scheduler(tokens=64, stream_tokens=64)
    made.halo = made.turns.halo = 40  # more rows than are reserved
    begun = Sequence(np.arange(200) % 10, score_from=100)
    bulk(made, begun, patient=True)
    bulk(made, written := stream(20), patient=True)
    others = 0
    for _ in range(600):
        add(made, *(text(100) for _ in range(2)))
        add(made, stream(3))
        picked, _ = step(made)
        others += sum(a.piece.rows for a in picked if a.sequence not in (begun, written))
        if begun.closed and written.closed:
            break
    assert begun.closed
    assert written.closed
    assert others > 0


def test_a_stream_that_nobody_reads_stops_and_goes_on_when_it_is_read() -> None:
    made = scheduler()
    add(made, one := stream(10_000))
    for _ in range(2 * POLICY.unread_tokens):
        step(made)
    assert one.unread == POLICY.unread_tokens
    assert not made.ready
    assert not step(made)[0]
    assert one.mark_read(10)
    assert [a.sequence for a in step(made)[0]] == [one]
    assert not one.mark_read(1)


def test_streams_that_nobody_reads_give_their_slots_to_prompts() -> None:
    made = scheduler(slots=4)
    unread = [stream(10_000) for _ in range(4)]
    for one in unread:
        add(made, one)
    for _ in range(2 * POLICY.unread_tokens):
        step(made)
    assert not made.states.free
    for one in (new := [stream(5) for _ in range(8)]):
        add(made, one)
    for _ in range(60):
        step(made)
    assert all(one.closed for one in new)
    for one in unread:
        one.mark_read(POLICY.unread_tokens)
    for _ in range(2):  # halos of so many do not fit into one batch
        step(made)
    assert all(one.unread > 0 for one in unread)


def test_one_caller_leaves_slots_to_those_who_come_later() -> None:
    made = scheduler(tokens=256, stream_tokens=256, slots=16)
    crowd = [stream(1000) for _ in range(100)]
    add(made, *crowd)
    for _ in range(5):
        step(made)
    assert len(made.streams) == 8
    add(made, late := stream(3))
    step(made)
    assert late in made.streams


def test_a_caller_that_has_had_no_row_in_time_is_dropped_and_others_are_not() -> None:
    made = Scheduler(R, Budget(32, 16), 100, max_queue_seconds=1e-9)
    patient = CallerQueue(patient=True, since=0.0)
    made.add(patient, [kept := text(10)])
    made.add(CallerQueue(since=0.0), [late := text(10), also := text(5)])
    made.add(CallerQueue(since=0.0), [prompt := stream(3)])
    assert made.expire() == [late, also, prompt]
    assert [a.sequence for a in step(made)[0]] == [kept]
    assert made.idle
    request = CallerQueue(since=0.0)
    made.unserved.max_seconds = math.inf
    made.add(request, [long := text(100)])
    step(made)
    made.unserved.max_seconds = 1e-9
    made.add(request, [text(5)])
    assert made.expire() == []
    assert not long.closed


def test_choices_start_although_a_stream_without_a_slot_is_not_read() -> None:
    made = scheduler(slots=2)
    unread = stream(10_000)
    add(made, unread)
    for _ in range(2 * POLICY.unread_tokens):
        step(made)
    ending = [stream(3), stream(3)]
    for one in ending:  # it gives its slot to them
        add(made, one)
    while not all(one.closed for one in ending):
        step(made)
    assert unread.slot is None
    requests = [_choices(2), _choices(2)]
    for request in requests:
        add(made, *request)
    for _ in range(40):
        step(made)
    assert all(one.closed for request in requests for one in request)


def _choices(count: int) -> list[Sequence]:
    """Choices of a prompt, which comes first."""
    tokens = np.arange(5)
    follow = Generation(GREEDY, 4, frozenset())
    prompt = Sequence(tokens, score_from=4)
    return [prompt, *(Sequence(tokens, 4, follow=follow, parent=prompt) for _ in range(count))]


def _listed(count: int) -> Sequence:
    """A stream whose prompt is scored."""
    return Sequence(np.arange(5), follow=Generation(GREEDY, count, frozenset()))


def test_streams_of_scored_prompts_leave_slots_to_others_too() -> None:
    made = scheduler(slots=8)
    add(made, *(_listed(20) for _ in range(8)))
    for _ in range(10):
        step(made)
    assert len(made.states.free) == 4


def test_a_batch_has_few_streams_that_have_lost_their_slots_and_each_in_its_turn() -> None:
    made = Scheduler(101, Budget(512, 64), 4)
    streams = [Sequence(np.arange(200) % 10, follow=_listed(200).follow) for _ in range(16)]
    for one in streams:
        add(made, one)
    while not all(one.streaming or one.closed for one in streams):
        step(made)
    without = [one for one in streams if one.slot is None and not one.closed]
    assert len(without) > 2
    generated = [len(one.generated) for one in without]
    for _ in without:
        assert rows(step(made)[0]) <= 2 * 101 + 16
    assert all(len(one.generated) > n for one, n in zip(without, generated, strict=True))


def test_prompts_that_wait_for_slots_make_batches_of_texts_no_smaller() -> None:
    made = scheduler(tokens=256, stream_tokens=64, slots=2)
    unread = [stream(10_000), stream(10_000)]
    for one in unread:
        add(made, one)
    step(made)
    batch = made.pick()  # the streams run
    add(made, *(stream(5) for _ in range(10)))
    add(made, text(1000))
    assert rows(made.pick()) == 256
    assert made.prompts.blocked_rows == 10 * 4
    made.finish(batch)


def test_bulk_streams_go_on_in_batches_of_few_rows() -> None:
    made = scheduler(tokens=3, stream_tokens=3)
    one = stream(5)
    bulk(made, one)
    step(made)
    add(made, text(10_000))
    for _ in range(20):
        step(made)
    assert one.closed


def test_a_batch_without_room_for_distributions_looks_at_few_of_the_callers_that_want_them() -> (
    None
):
    made = scheduler(tokens=512, stream_tokens=16)
    waiting = [Sequence(np.arange(3), follow="distribution") for _ in range(1000)]
    for one in waiting:
        add(made, one)
    picked = made.pick()
    assert len(picked) == 16
    assert len(made.turns.new) == 1000 - 16
    visits = 0

    class Counting(Sequence):
        @property
        def ready(self) -> bool:
            nonlocal visits
            visits += 1
            return super().ready

    made = scheduler(tokens=512, stream_tokens=16)
    for one in waiting:
        add(made, Counting(one.tokens, follow="distribution"))
    made.pick()
    assert visits < 500
