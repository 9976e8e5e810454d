"""The planner against the simplest layout, and row addressing."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.planner import Piece, Step, plan
from model.bundle import Bundle
from model.graph import SCRATCH_SLOT, frame_row, state_row, whole_text


def piece(tokens: list[int], read: int | None = None, write: int | None = None) -> Piece:
    array = np.array(tokens, np.int64)
    rows = range(len(tokens) - 1)
    return Piece(array, read, write, rows, array[1:], range(len(tokens) - 1, len(tokens)))


@given(st.lists(st.integers(0, 99), min_size=2, max_size=20), st.integers(1, 6), st.integers(1, 4))
def test_a_text_alone_is_laid_out_as_whole_text_does(
    tokens: list[int], taps: int, multiple: int
) -> None:
    planned = plan([piece(tokens)], taps, multiple)
    found, expected = (asdict(b) for b in (planned, whole_text(tokens, taps, multiple)))
    assert not len(planned.tokens) % multiple
    assert found.keys() == expected.keys()
    assert found.pop("tails") is None  # of all
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], name)
        assert array.dtype == np.int64


@given(
    st.lists(st.tuples(st.integers(1, 8), st.booleans(), st.booleans()), min_size=1, max_size=6),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_every_tap_names_the_token_it_should(
    shapes: list[tuple[int, bool, bool]], taps: int, multiple: int
) -> None:
    """Rows, states and zero rows addressed by a slow obvious loop."""
    pieces = [
        piece(list(range(length)), 10 + n if reads else None, 20 + n if writes else None)
        for n, (length, reads, writes) in enumerate(shapes)
    ]
    batch = plan(pieces, taps, multiple)
    rows = len(batch.tokens)
    reading = [p.read_slot for p in pieces if p.read_slot is not None]
    assert batch.read_slots.tolist() == (reading or [SCRATCH_SLOT])
    states = len(batch.read_slots)
    begin = 0
    carried = []
    for one in pieces:

        def place(position: int, one: Piece = one, begin: int = begin) -> int:
            if position >= 0:
                return frame_row(begin + position)
            if one.read_slot is None:
                return 0
            return state_row(rows, states, reading.index(one.read_slot), -position)

        length = len(one.tokens)
        for row in range(length):
            expected = [place(row - tap) for tap in range(taps)]
            assert batch.taps[begin + row].tolist() == expected
        if one.write_slot is not None:
            carried.append([place(length - 1 - age) for age in range(taps - 1)])
        begin += length
    assert rows - begin == -begin % multiple
    assert not batch.taps[begin:].any()
    if carried:
        assert batch.carry.tolist() == carried
        assert batch.write_slots.tolist() == [
            p.write_slot for p in pieces if p.write_slot is not None
        ]
    else:
        assert batch.write_slots.tolist() == [SCRATCH_SLOT]
        assert not batch.carry.any()


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=9, unique=True),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_steps_of_the_same_streams_differ_in_their_tokens_alone(
    slots: list[int], taps: int, multiple: int
) -> None:
    def steps(first: int) -> list[Step]:
        return [Step(first + n, slot) for n, slot in enumerate(slots)]

    one, other = plan(steps(3), taps, multiple), plan(steps(70), taps, multiple)
    assert all(a is b for a, b in zip(one.addresses, other.addresses, strict=True))
    assert one.tokens[: len(slots)].tolist() == [3 + n for n in range(len(slots))]
    assert other.tokens[: len(slots)].tolist() == [70 + n for n in range(len(slots))]
    nothing = np.zeros(0, np.int64)
    general = plan(
        [Piece(s.tokens, s.slot, s.slot, range(0), nothing, range(1)) for s in steps(3)],
        taps,
        multiple,
    )
    for name, array in asdict(one).items():
        np.testing.assert_array_equal(array, getattr(general, name), name)


@pytest.mark.parametrize("multiple", [1, 4])
def test_only_lists_of_slots_get_a_dummy_unasked(adaptive: Bundle, multiple: int) -> None:
    config = adaptive.config.model
    nothing = Piece(np.array([3]), None, None, range(0), np.zeros(0, np.int64), range(0))
    batch = plan([nothing], config.taps, multiple)
    assert batch.read_slots.tolist() == batch.write_slots.tolist() == [SCRATCH_SLOT]
    slots = {"tokens", "taps", "read_slots", "write_slots", "carry"}
    feeds = batch.feeds(config, multiple)
    assert {name for name, array in feeds.items() if len(array)} == slots
    asked = batch.feeds(config, multiple, least=1)
    assert all(len(array) for array in asked.values())
    places = [array for name, array in asked.items() if name.endswith("_places")]
    assert len(places) == len(config.tails)
    for array in places:  # behind the last
        assert set(array.tolist()) == {len(asked["targets"])}
