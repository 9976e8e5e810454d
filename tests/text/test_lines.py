"""Lines of bounded length out of bytes in parts."""

from __future__ import annotations

import json

import orjson
from hypothesis import given
from hypothesis import strategies as st

from app.text.lines import Lines, on_one_line


@given(
    st.lists(st.binary(max_size=6) | st.sampled_from([b"\n", b"a\n", b"\n\nb"])), st.integers(0, 9)
)
def test_lines_are_those_of_the_whole_wherever_it_is_cut(parts: list[bytes], limit: int) -> None:
    lines = Lines(limit)
    found = [line for part in parts for line in lines.feed(part)] + lines.end()
    whole = b"".join(parts).split(b"\n")
    if not whole[-1]:
        whole.pop()
    assert found == [line if len(line) <= limit else None for line in whole]


def test_no_more_than_a_line_is_held() -> None:
    lines = Lines(100)
    for _ in range(1000):
        assert lines.feed(b"x" * 50) == []
        assert len(lines._begun) <= 100
    assert lines.feed(b"\nshort\n") == [None, b"short"]


@given(
    st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\x85\u2028\u2029\x1e\n"))
)
def test_json_on_one_line_has_no_line_break_that_any_client_knows(text: str) -> None:
    line = on_one_line(orjson.dumps({text: text}))
    assert line.decode().splitlines() == [line.decode()]
    assert json.loads(line) == {text: text}
