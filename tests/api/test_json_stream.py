"""JSON that is written in parts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from app.api import json_stream


def test_the_parts_of_an_object_make_one_document() -> None:
    parts = [
        json_stream.open_object({"object": "list", "model": 'a"b'}),
        json_stream.members({"text": "é\n"}),
        json_stream.open_array("data"),
        json_stream.open_object({"index": 0}),
        json_stream.CLOSE_OBJECT,
        json_stream.SEPARATOR,
        json_stream.open_object({"index": 1}),
        json_stream.key("logprob") + json_stream.dumps(np.float32(-0.5)),
        json_stream.close_object({"last": True}),
        json_stream.CLOSE_ARRAY,
        json_stream.close_object({"usage": {"total_tokens": 3}}),
    ]
    assert json.loads(b"".join(parts)) == {
        "object": "list",
        "model": 'a"b',
        "text": "é\n",
        "data": [{"index": 0}, {"index": 1, "logprob": -0.5, "last": True}],
        "usage": {"total_tokens": 3},
    }


def test_members_are_put_before_those_of_an_object_of_which_only_the_beginning_is_there() -> None:
    part = json_stream.open_object({"model": "m"})
    whole = json_stream.prepend_members({"index": 3, "custom_id": None}, part) + b"}"
    assert list(json.loads(whole).items()) == [("index", 3), ("custom_id", None), ("model", "m")]


@pytest.mark.parametrize("length", [0, 1, 4, 5, 8, 9])
def test_an_array_in_slices_has_all_elements_in_order(length: int) -> None:
    asked = []

    def part(first: int, last: int) -> bytes:
        asked.append(last - first)
        return json_stream.dumps(np.arange(first, last))

    parts = list(json_stream.array_in_slices("ids", length, part, size=4))
    document = json_stream.open_object({"a": 1}) + b"".join(parts) + json_stream.CLOSE_OBJECT
    assert json.loads(document) == {"a": 1, "ids": list(range(length))}
    assert max(asked, default=0) <= 4


@pytest.mark.parametrize(("first", "second"), [("", ""), ("1", ""), ("", "2"), ("1", "2,3")])
def test_elements_are_joined_without_an_empty_place(first: str, second: str) -> None:
    grown = bytearray(first.encode())
    json_stream.extend(grown, second.encode())
    runs = [first.encode(), second.encode()]
    expected = json.loads(f"[{first}]") + json.loads(f"[{second}]")
    assert json.loads(b"[" + grown + b"]") == expected
    document = b"".join(json_stream.object_of_arrays({"a": runs, "b": [b"null"]}))
    assert json.loads(document) == {"a": expected, "b": [None]}


def test_an_event_and_a_line_hold_no_line_break_but_those_at_their_end() -> None:
    value = {"text": "a\nb\u2028c\u0085"}
    event = json_stream.event(value)
    assert event.endswith(b"\n\n")
    assert len(event.decode().splitlines()) == 2
    assert json.loads(event.removeprefix(b"data: ")) == value
    assert json_stream.line({"text": "a\nb"}) == b'{"text":"a\\nb"}\n'
