"""Bytes become whole characters, and nothing of a stop string is ever shown."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from app.text.stops import TextStream

# few characters of one to four bytes, so that stop strings are often found
LETTERS = "ab\n\u00e9\u6211\U0001f642"
TEXT = st.text(LETTERS, max_size=30)
STOPS = st.lists(st.text(LETTERS, max_size=4), max_size=4)


def cut_at_first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The slow oracle: reads character by character, ends where a stop string is complete."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


def tokens_of(raw: bytes, places: list[int]) -> list[bytes]:
    """The bytes cut at some places."""
    cuts = sorted({0, len(raw), *(place % (len(raw) + 1) for place in places)})
    return [raw[a:b] for a, b in pairwise(cuts)] or [b""]


def shown_by(stream: TextStream, tokens: list[bytes]) -> list[str]:
    """What each token shows, as generation feeds it: nothing more once it has stopped."""
    shown = []
    for index, token in enumerate(tokens):
        shown.append(stream.feed(token, last=index == len(tokens) - 1))
        if stream.stopped is not None:
            break
    return shown


@given(TEXT, STOPS, st.lists(st.integers(0, 200), max_size=12))
@example("ab", ["b", "abc"], [])
@example("xabcy", ["abc", "b"], [2])
@example("aab", ["ab"], [1, 2])
def test_the_text_is_cut_at_the_first_stop_however_its_bytes_are_split(
    text: str, stops: list[str], places: list[int]
) -> None:
    expected, stop = cut_at_first_stop(text, stops)
    stream = TextStream(stops)
    shown = shown_by(stream, tokens_of(text.encode(), places))
    assert "".join(shown) == expected
    assert stream.stopped == stop


@given(TEXT, STOPS, st.lists(st.integers(0, 200), max_size=12), TEXT)
def test_nothing_is_shown_that_a_later_token_could_take_back(
    text: str, stops: list[str], places: list[int], other: str
) -> None:
    stream = TextStream(stops)
    shown = ""
    read = b""
    for token in tokens_of(text.encode(), places):
        shown += stream.feed(token)
        read += token
        if stream.stopped is not None:
            break
        for rest in (other, *stops):  # whatever follows, what was shown is part of the answer
            whole = read.decode(errors="ignore") + rest
            assert cut_at_first_stop(whole, stops)[0].startswith(shown)


@given(TEXT, st.lists(st.integers(0, 200), max_size=12))
def test_without_stops_every_whole_character_is_shown_at_once(text: str, places: list[int]) -> None:
    stream = TextStream()
    shown, read = "", b""
    for token in tokens_of(text.encode(), places):
        shown += stream.feed(token)
        read += token
        assert shown == read.decode(errors="ignore")
        assert stream.position == len(shown)


@given(st.lists(st.binary(max_size=5), max_size=8))
def test_bytes_that_are_no_utf8_become_replacement_characters(tokens: list[bytes]) -> None:
    stream = TextStream(["stop"])
    shown = "".join([stream.feed(token) for token in tokens] + [stream.feed(b"", last=True)])
    assert shown == b"".join(tokens).decode(errors="replace")


def test_a_stream_that_has_stopped_shows_nothing_more() -> None:
    stream = TextStream(["b"])
    assert stream.feed(b"abc") == "a"
    assert stream.feed(b"more", last=True) == ""
    assert stream.stopped == "b"


def test_an_empty_stop_string_stops_nothing() -> None:
    stream = TextStream([""])
    assert stream.feed(b"text") == "text"
    assert stream.stopped is None


def test_a_long_run_of_a_stop_strings_beginning_is_shown_when_it_ends() -> None:
    stream = TextStream(["a" * 20 + "b"])
    shown = "".join(stream.feed(b"a") for _ in range(50))
    assert shown == "a" * 30
    assert stream.feed(b"c") == "a" * 20 + "c"


@given(st.lists(st.binary(min_size=1, max_size=4), max_size=8))
@example([b"\xf0\x9f", b"-"])
@example([b"\xe0", b"\x80"])
@example([b"\xf0\x9f", b"\x99", b"\x82!"])
def test_every_tokens_place_is_that_of_its_first_byte(tokens: list[bytes]) -> None:
    stream = TextStream()
    read = b""
    for token in tokens:
        place = stream.offset_of(token)
        whole = (read + token[:1]).decode(errors="replace")
        assert place == len(whole) - 1
        stream.feed(token)
        read += token
    assert stream.offset_of(b"") == stream.position


def test_an_end_symbol_behind_half_a_character_stands_behind_its_replacement() -> None:
    stream = TextStream()
    assert stream.feed("a\u00e9".encode()[:2]) == "a"
    assert stream.offset_of(b"") == 1
    assert stream.offset_of(b"", last=True) == 2
    assert stream.feed(b"", last=True) == "\ufffd"


@given(TEXT, STOPS, st.lists(st.integers(0, 200), max_size=12))
def test_a_kept_stop_string_ends_the_text_and_nothing_behind_it_is_shown(
    text: str, stops: list[str], places: list[int]
) -> None:
    before, stop = cut_at_first_stop(text, stops)
    stream = TextStream(stops, keep_stop=True)
    shown = shown_by(stream, tokens_of(text.encode(), places))
    assert "".join(shown) == before + (stop or "")


@given(TEXT, STOPS, st.lists(st.integers(0, 200), max_size=12), st.integers(0, 12))
@example("aab", ["ab", "b"], [1, 2], 2)
def test_a_stop_string_that_is_complete_too_soon_ends_nothing(
    text: str, stops: list[str], places: list[int], free: int
) -> None:
    tokens = tokens_of(text.encode(), places)
    past = len(b"".join(tokens[:free]).decode(errors="ignore"))
    expected = text
    for end in range(past + 1, len(text) + 1):
        ending = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if ending:
            expected = text[: end - max(map(len, ending))]
            break
    stream = TextStream(stops)
    shown = ""
    for number, token in enumerate(tokens):
        last = number == len(tokens) - 1
        shown += stream.feed(token, last=last, may_stop=number >= free)
    assert expected.startswith(shown) or shown.startswith(expected)
    if shown != expected:  # what had been shown before the stop string was complete stays
        assert stream.stopped is not None
        assert len(shown) <= past
