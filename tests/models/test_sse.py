"""The parser of server-sent events."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrt.models.sse import ServerEvent, ServerEvents


def parse(*pieces: bytes) -> list[ServerEvent]:
    parser = ServerEvents()
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.finish()


def data(*pieces: bytes) -> list[bytes]:
    return [event.data for event in parse(*pieces)]


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_each_kind_of_line_end_ends_lines(end: bytes) -> None:
    body = end.join([b"event: a", b"data: 1", b"", b"data: 2", b"", b""])
    assert parse(body) == [ServerEvent(b"a", b"1"), ServerEvent(b"", b"2")]


def test_lines_of_data_are_joined_by_a_line_feed() -> None:
    assert data(b"data: one\ndata: two\ndata\ndata:three\n\n") == [b"one\ntwo\n\nthree"]


def test_only_one_blank_after_the_colon_is_taken_off() -> None:
    assert data(b"data:  x\n\ndata:y\n\n") == [b" x", b"y"]


def test_comments_and_other_fields_are_passed_over() -> None:
    assert data(b": a comment\nid: 7\nretry: 10\nunknown\n:\n\ndata: x\n\n") == [b"x"]


def test_an_event_without_data_is_none_and_its_name_is_forgotten() -> None:
    assert parse(b"event: ping\n\ndata: x\n\n") == [ServerEvent(b"", b"x")]


def test_a_byte_order_mark_at_the_start_is_dropped_even_in_pieces() -> None:
    assert data(b"\xef", b"\xbb\xbfdata: x\n\ndata: \xef\xbb\xbf\n\n") == [b"x", b"\xef\xbb\xbf"]


def test_a_character_may_be_cut_in_two() -> None:
    whole = "data: é\U0001f600\n\n".encode()
    for at in range(len(whole)):
        assert data(whole[:at], whole[at:]) == ["é\U0001f600".encode()]


def test_cr_and_lf_in_two_pieces_are_one_line_end() -> None:
    assert data(b"data: a\r", b"\ndata: b\r\n\r", b"\n", b"data: c\r", b"\r") == [b"a\nb", b"c"]


def test_the_end_of_the_body_completes_the_last_event() -> None:
    assert data(b"data: a\n\ndata: [DONE]") == [b"a", b"[DONE]"]
    assert data(b"data: [DONE]\n") == [b"[DONE]"]
    assert data(b"data: a\n\n") == [b"a"]


def test_an_event_that_never_ends_is_an_error() -> None:
    parser = ServerEvents(max_bytes=100)
    assert parser.feed(b"data: " + b"x" * 80) == []
    with pytest.raises(ValueError, match="longer than 100 bytes"):
        parser.feed(b"x" * 80)


def test_lines_without_an_end_of_the_event_are_bounded_too() -> None:
    parser = ServerEvents(max_bytes=100)
    for _ in range(10):
        parser.feed(b"data: 0123456789\n")
    with pytest.raises(ValueError, match="longer than 100 bytes"):
        parser.feed(b"data: 0123456789\n")


def test_many_events_are_not_held_against_the_limit() -> None:
    parser = ServerEvents(max_bytes=100)
    for _ in range(50):
        assert len(parser.feed(b"data: 0123456789\n\n" * 20 + b"da")) == 20
        assert len(parser.feed(b"ta: x\n\n")) == 1


@given(
    body=st.lists(st.sampled_from([b"data: a", b"data:b", b": c", b"event: e", b"", b"id: 1", b"data"])),
    ends=st.lists(st.sampled_from([b"\n", b"\r", b"\r\n"]), min_size=1),
    cuts=st.sets(st.integers(0, 200)),
)
def test_where_the_pieces_are_cut_makes_no_difference(
    body: list[bytes], ends: list[bytes], cuts: set[int]
) -> None:
    whole = b"".join(line + ends[number % len(ends)] for number, line in enumerate(body))
    places = [0, *sorted(cut for cut in cuts if 0 < cut < len(whole)), len(whole)]
    pieces = [whole[start:end] for start, end in itertools.pairwise(places)]
    assert parse(*pieces) == parse(whole)
