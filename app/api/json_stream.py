"""Writes JSON by hand: objects and arrays that are sent in parts, lines and events.

Everything else is written by orjson or pydantic. Parts are concatenated: an object is opened with
its first members, continued with more of them, and closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import orjson

from app.text.lines import on_one_line

Part = bytes | bytearray

SEPARATOR = b","
"""Stands between two elements of an array."""
CLOSE_ARRAY = b"]"
CLOSE_OBJECT = b"}"
LAST_EVENT = b"data: [DONE]\n\n"
"""Ends a stream of server-sent events, as OpenAI's streams end."""
_SLICE = 4096
"""Elements of a long array that are written at a time."""


def dumps(value: object) -> bytes:
    """Any value; it may contain numpy's arrays and scalars."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def open_object(members: Mapping[str, object]) -> bytes:
    """The beginning of an object, with at least one member: `{"a":1`."""
    return dumps(members)[:-1]


def key(name: str) -> bytes:
    """The name of another member, whose value comes next: `,"a":`."""
    return b',"%b":' % name.encode()


def members(values: Mapping[str, object]) -> bytes:
    """More members of an object: `,"a":1`."""
    return b"," + dumps(values)[1:-1]


def close_object(values: Mapping[str, object]) -> bytes:
    """The last members of an object, and its end: `,"a":1}`."""
    return b"," + dumps(values)[1:]


def prepend_members(values: Mapping[str, object], part: bytes) -> bytes:
    """An object's JSON, or its first part, with other members first."""
    return open_object(values) + b"," + part[1:]


def open_array(name: str) -> bytes:
    """Another member, an array whose elements come next: `,"a":[`."""
    return b',"%b":[' % name.encode()


def elements(values: Sequence[object]) -> bytes:
    """The elements of an array without its brackets: `1,2`."""
    return dumps(values)[1:-1]


def extend(array: bytearray, more: Part) -> None:
    """Appends elements to the elements of an array; both are without brackets and may be empty."""
    if array and more:
        array += b","
    array += more


def array_in_slices(
    name: str, length: int, part: Callable[[int, int], bytes], size: int = _SLICE
) -> Iterator[bytes]:
    """Another member, an array of `length` elements, written `size` of them at a time.

    part: gives the JSON array of the elements from its first argument to before its second.
    """
    if length <= size:
        yield key(name) + (part(0, length) if length else b"[]")
        return
    yield open_array(name)
    for first in range(0, length, size):
        more = part(first, min(first + size, length))[1:-1]
        yield b"," + more if first else more
    yield CLOSE_ARRAY


def object_of_arrays(arrays: Mapping[str, Sequence[Part]]) -> list[Part]:
    """An object of arrays, at least one, in parts that are not copied. Each is given in runs."""
    parts: list[Part] = []
    before = "{"
    for name, runs in arrays.items():
        parts.append(f'{before}"{name}":['.encode())
        before = "],"
        for index, run in enumerate(run for run in runs if run):
            parts += [SEPARATOR, run] if index else [run]
    parts.append(b"]}")
    return parts


def line(value: object) -> bytes:
    """A line of NDJSON."""
    return dumps(value) + b"\n"


def event(value: object) -> bytes:
    """A server-sent event."""
    return b"data: " + on_one_line(dumps(value)) + b"\n\n"
