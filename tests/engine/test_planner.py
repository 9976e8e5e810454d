"""The planner against the simplest layout, and row addressing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.planner import Piece, Step, plan
from model.core.bundle import Bundle
from model.core.config import Taps
from model.core.flat_batch import Addresses, FlatBatch, whole_text
from model.core.graph import SCRATCH_SLOT, state_row


def piece(tokens: list[int], read: int | None = None, write: int | None = None) -> Piece:
    array = np.array(tokens, np.int64)
    rows = range(len(tokens) - 1)
    return Piece(array, read, write, rows, array[1:], range(len(tokens) - 1, len(tokens)), 0)


TAPS = st.dictionaries(st.integers(2, 5), st.integers(2, 4), max_size=2).flatmap(
    lambda dilated: st.integers(1, 5).map(lambda first: ((1, first), *sorted(dilated.items())))
)
"""What models have: dilations, the widest kernel of each, and always dilation 1."""


@given(st.lists(st.integers(0, 99), min_size=2, max_size=20), TAPS, st.integers(1, 4))
def test_a_text_alone_is_laid_out_as_whole_text_does(
    tokens: list[int], taps: Taps, multiple: int
) -> None:
    planned = plan([piece(tokens)], taps, multiple)
    expected = whole_text(tokens, taps, multiple)
    assert not len(planned.tokens) % multiple
    assert planned.tails is None  # of all
    same(planned, expected)


def same(one: FlatBatch, other: FlatBatch) -> None:
    """All arrays but the tails' terms are equal, and indices."""
    fields = ("tokens", "score_rows", "targets", "next_rows")
    fields += ("alternative_rows", "alternative_targets")
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in fields}
    for a, b in zip(one.addresses, other.addresses, strict=True):
        assert a.dilation == b.dilation
        laid, expected = a.feeds(), b.feeds()
        assert laid.keys() == expected.keys()
        pairs |= {name: (array, expected[name]) for name, array in laid.items()}
    for name, (array, expected) in pairs.items():
        np.testing.assert_array_equal(array, expected, name)
        assert array.dtype == np.int64


def test_rows_with_alternatives_are_listed_instead_of_scored() -> None:
    plain, some, many = piece([1, 2, 3]), piece([4, 5]), piece([6, 7, 8])
    batch = plan([replace(some, top=2), plain, replace(many, top=5)], ((1, 3),))
    assert batch.score_rows.tolist() == [2, 3]
    assert batch.targets.tolist() == [2, 3]
    assert batch.alternative_rows.tolist() == [0, 5, 6]
    assert batch.alternative_targets.tolist() == [5, 7, 8]
    assert batch.alternative_count == 5


@given(
    st.lists(
        st.tuples(
            st.integers(1, 8),
            st.sampled_from(["own", "parent", None]),
            st.sampled_from(["same", "other", None]),
            st.integers(0, 9),
        ),
        min_size=1,
        max_size=5,
    ),
    TAPS,
    st.integers(1, 4),
)
def test_every_tap_names_the_token_it_should(
    shapes: list[tuple[int, str | None, str | None, int]], taps: Taps, multiple: int
) -> None:
    """Rows, states and zero rows addressed by a slow obvious loop; several read their parent's."""
    pieces = []
    for n, (length, reads, writes, position) in enumerate(shapes):
        read = {"own": 10 + n, "parent": 1, None: None}[reads]
        write = {"same": 10 + n, "other": 20 + n, None: None}[writes]
        pieces.append(replace(piece(list(range(length)), read, write), position=position))
    batch = plan(pieces, taps, multiple)
    rows = len(batch.tokens)
    used = sum(piece.rows for piece in pieces)
    assert rows - used == -used % multiple
    assert [(laid.dilation, laid.taps.shape[1]) for laid in batch.addresses] == list(taps)
    for laid in batch.addresses:
        check_addresses(pieces, laid, rows)


Frame = tuple[str, int] | tuple[str, int, int] | None
"""A row of the batch, a row of the pool and an age, or zeros."""


def check_addresses(pieces: list[Piece], laid: Addresses, rows: int) -> None:
    d, states = laid.dilation, laid.read_slots.tolist()

    def meant(address: int) -> Frame:
        """What lies there."""
        if address <= rows:
            return ("row", address - 1) if address else None
        age, state = divmod(address - state_row(rows, len(states), 0, age=1), len(states))
        return ("state", states[state], age + 1)

    def frame_of(one: Piece, begin: int, token: int) -> Frame:
        """Of a token, counted from the piece's first."""
        if token >= 0:
            return ("row", begin + token)
        if one.read_slot is None:
            return None
        return ("state", one.read_slot * d + (one.position + token) % d, len(range(token, 0, d)))

    written: dict[int, list[Frame]] = {}
    begin = 0
    for one in pieces:
        length = len(one.tokens)
        for row in range(length):
            expected = [frame_of(one, begin, row - tap * d) for tap in range(laid.taps.shape[1])]
            assert [meant(tap) for tap in laid.taps[begin + row].tolist()] == expected
        for newest in range(length - d, length):  # of each phase, in front of the next token
            if one.write_slot is None or (newest < 0 and one.read_slot == one.write_slot):
                continue
            slot = one.write_slot * d + (one.position + newest) % d
            ages = range(laid.carry.shape[1])
            written[slot] = [frame_of(one, begin, newest - age * d) for age in ages]
        begin += length
    assert not laid.taps[begin:].any()
    slots = laid.write_slots.tolist()
    if written:
        assert len(slots) == len(written)
        carried = [[meant(row) for row in carry] for carry in laid.carry.tolist()]
        assert dict(zip(slots, carried, strict=True)) == written
    else:
        assert slots == [SCRATCH_SLOT]
        assert not laid.carry.any()


@given(
    st.lists(
        st.tuples(st.integers(1, 50), st.integers(0, 20)),
        min_size=1,
        max_size=9,
        unique_by=lambda stream: stream[0],
    ),
    TAPS,
    st.integers(1, 4),
)
def test_steps_of_the_same_streams_have_all_in_common_that_does_not_move(
    streams: list[tuple[int, int]], taps: Taps, multiple: int
) -> None:
    def steps(later: int) -> list[Step]:
        return [Step(3 + later + n, slot, at + later) for n, (slot, at) in enumerate(streams)]

    one, other = plan(steps(0), taps, multiple), plan(steps(67), taps, multiple)
    assert all(a is b for a, b in zip(one.fixed, other.fixed, strict=True))
    nothing = np.zeros(0, np.int64)
    for laid, later in ((one, 0), (other, 67)):
        assert laid.tokens[: len(streams)].tolist() == [3 + later + n for n in range(len(streams))]
        general = [
            Piece(s.tokens, s.read_slot, s.write_slot, range(0), nothing, range(1), s.position)
            for s in steps(later)
        ]
        same(laid, plan(general, taps, multiple))


@given(st.integers(1, 9), TAPS)
def test_fixed_and_moving_arrays_are_all_there_are(streams: int, taps: Taps) -> None:
    batch = plan([Step(3, 1 + n, n) for n in range(streams)], taps)
    arrays = [array for one in batch.addresses for array in one.feeds().values()]
    arrays += [batch.tokens, batch.score_rows, batch.targets, batch.next_rows]
    arrays += [batch.alternative_rows, batch.alternative_targets]
    known = {id(array) for array in (*batch.fixed, *batch.moving().values())}
    assert {id(array) for array in arrays} == known


@pytest.mark.parametrize("multiple", [1, 4])
def test_only_lists_of_slots_get_a_dummy_unasked(adaptive: Bundle, multiple: int) -> None:
    config = adaptive.config.model
    nothing = Piece(np.array([3]), None, None, range(0), np.zeros(0, np.int64), range(0), 0)
    batch = plan([nothing], config.taps, multiple)
    slots = {"tokens", "list_count"}
    for addresses in batch.addresses:
        assert addresses.read_slots.tolist() == addresses.write_slots.tolist() == [SCRATCH_SLOT]
        slots |= addresses.feeds().keys()
    feeds = batch.feeds(config, multiple)
    assert {name for name, array in feeds.items() if len(array)} == slots
    asked = batch.feeds(config, multiple, least=1)
    listed = {"list_rows", "list_targets"}
    assert {name for name, array in asked.items() if not len(array)} == listed
    positions = [array for name, array in asked.items() if name.endswith("_places")]
    assert len(positions) == len(config.tails)
    for array in positions:  # behind the last
        assert set(array.tolist()) == {len(asked["targets"])}
