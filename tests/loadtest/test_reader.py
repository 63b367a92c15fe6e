"""Server-sent events and chunks are read however they are cut, and whatever they are."""

from __future__ import annotations

import json
import time
from array import array
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from livery_loadtest.reader import MOST_EVENT, Answer, EventSplitter
from livery_loadtest.record import Record
from livery_loadtest.script import Planned
from livery_loadtest.wire import Failed, Left

SSE = {"content-type": "text/event-stream; charset=utf-8"}


def split(pieces: list[bytes]) -> list[bytes]:
    splitter = EventSplitter()
    return [event for piece in pieces for event in splitter.feed(piece)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    marks = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(marks)]


LINES = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]), max_size=20)
NOISE = st.sampled_from([b"", b": ping", b"event: message", b"id: 7", b"retry: 10", b"dat: x"])


@given(
    st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=6),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    st.sampled_from([b"", b"\xef\xbb\xbf"]),
    NOISE,
    st.lists(st.integers(0, 1 << 16), max_size=12),
)
def test_events_are_the_same_wherever_reads_end(
    events: list[list[str]], end: bytes, mark: bytes, noise: bytes, places: list[int]
) -> None:
    stream = mark
    for lines in events:
        stream += noise + end if noise else b""
        stream += b"".join(b"data: " + line.encode() + end for line in lines) + end
    expected = ["\n".join(lines).encode() for lines in events]
    assert split([stream]) == expected
    assert split(cut(stream, places)) == expected
    assert split([stream[at : at + 1] for at in range(len(stream))]) == expected


def test_the_space_after_the_colon_may_be_missing_and_only_one_is_dropped() -> None:
    assert split([b"data:a\n\ndata:  b\n\ndata\n\ndata:\ndata:\n\n"]) == [b"a", b" b", b"", b"\n"]


SCRAPS = st.sampled_from([b"data: x", b"\n", b"\r", b"\r\n", b"\n\n", b":", b"\xef\xbb"]) | st.binary(max_size=9)


@given(st.lists(SCRAPS).map(b"".join), st.lists(st.integers(0, 1 << 16), max_size=6))
def test_garbage_is_cut_the_same_too(data: bytes, places: list[int]) -> None:
    assert split(cut(data, places)) == split([data])


def test_an_event_without_an_end_is_refused_before_it_fills_the_memory() -> None:
    for start, more in ((b"data: x", b"x" * (1 << 16)), (b"", b": " + b"x" * (1 << 16)), (b"", b"data: x\n" * 1000)):
        splitter = EventSplitter()
        splitter.feed(start)
        with pytest.raises(Failed, match="an event of more than"):
            for _ in range(2 * MOST_EVENT // len(more) + 2):
                splitter.feed(more)


def test_many_comments_are_no_large_event() -> None:
    splitter = EventSplitter()
    for _ in range(MOST_EVENT // (1 << 16) + 2):
        assert splitter.feed(b": " + b"x" * (1 << 16) + b"\n\n") == []
    assert splitter.feed(b"data: a") + splitter.feed(b"\n\n") == [b"a"]


# --- what is in the events ---


def record(model: str = "m", **fields: object) -> Record:
    return Record(Planned(0, 0.0, model, "hello", 4, **fields), 0.0)  # type: ignore[arg-type]


def read(into: Record, *payloads: object, done: bool = True, **how: bool) -> Record:
    """Feed events one by one, at the times 1, 2, …"""
    answer = Answer(into, **how)
    answer.on_head(200, SSE)
    for at, payload in enumerate([*map(json.dumps, payloads), *(["[DONE]"] if done else [])], 1):
        assert answer.on_data(f"data: {payload}\n\n".encode(), float(at))
    answer.on_end(99.0)
    return into


def delta(**fields: object) -> dict[str, object]:
    return {"model": "m", "choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


STOP = {"model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


def test_what_counts_as_an_event_is_text_reasoning_and_calls() -> None:
    call = [{"index": 0, "function": {"name": "f", "arguments": "{"}}]
    told = read(
        record(),
        delta(role="assistant", content=""),
        delta(reasoning_content="hm"),
        delta(reasoning="hm"),
        delta(content="Hi"),
        delta(tool_calls=call),
        delta(content=None, tool_calls=[]),
        STOP,
        keep_text=True,
    )
    assert told.events == array("d", [2.0, 3.0, 4.0, 5.0])
    assert (told.text, told.finish_reason, told.finished) == ("Hi", "stop", 8.0)
    assert (told.output_tokens, told.model_told) == (None, "m")


def test_usage_is_the_last_that_was_said_with_what_came_from_the_cache() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 8}}
    first = {**STOP, "usage": {"prompt_tokens": 9, "completion_tokens": 1}}
    told = read(record(), first, {"choices": [], "usage": usage})
    assert (told.prompt_tokens, told.output_tokens, told.cached_tokens) == (9, 2, 8)
    bare = read(record(), STOP, {"choices": [], "usage": {"completion_tokens": 2, "prompt_tokens_details": None}})
    assert (bare.prompt_tokens, bare.output_tokens, bare.cached_tokens) == (None, 2, None)


def test_an_answer_in_one_piece_is_read_too() -> None:
    told = record()
    answer = Answer(told, keep_text=True)
    answer.on_head(200, {"content-type": "application/json", "x-livery-adapter": "m@12"})
    whole = {"model": "m", "choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}
    body = json.dumps({**whole, "usage": {"prompt_tokens": 1, "completion_tokens": 2}}).encode()
    assert answer.on_data(body[:9], 1.0) and answer.on_data(body[9:], 2.0)
    answer.on_end(3.0)
    assert (told.text, told.output_tokens, told.events, told.finished) == ("Hi", 2, array("d", [3.0]), 3.0)
    assert told.version == "m@12"


@pytest.mark.parametrize(
    ("payloads", "kind", "message"),
    [
        ([delta(content="a"), {"error": {"message": "the engine is gone"}}], "error event", "the engine is gone"),
        ([{"error": "gone"}], "error event", "gone"),
        ([{"object": "error", "message": "gone"}], "error event", "gone"),
        ([delta(content="a")], "no finish reason", "without a finish_reason"),
        ([delta(content=7)], "unreadable event", "Expected `str"),
        ([[]], "unreadable event", "Expected `object`"),
        ([{**STOP, "model": "other"}], "wrong model", "'m' was asked for, the answer bears 'other'"),
        ([delta(content="a"), {**STOP, "model": "other"}, STOP], "wrong model", "'other'"),
        ([delta(content="")] * 1200, "endless answer", "for 4 tokens"),
    ],
)
def test_each_wrong_answer_has_its_kind(payloads: list[object], kind: str, message: str) -> None:
    with pytest.raises(Failed, match=message) as failure:
        read(record(), *payloads)
    assert failure.value.kind == kind


def test_a_stream_without_its_end_is_cut_and_a_model_that_need_not_be_told_is_not_looked_at() -> None:
    with pytest.raises(Failed) as failure:
        read(record(), STOP, done=False)
    assert failure.value.kind == "stream cut"
    assert read(record(), {**STOP, "model": "alias"}, echoes=False).model_told == "alias"
    assert read(record(), {"choices": STOP["choices"]}).model_told == ""


def test_the_client_leaves_after_the_events_it_was_to_see() -> None:
    told = record(leave_after=2)
    with pytest.raises(Left):
        read(told, delta(content="a"), delta(role="assistant"), delta(content="b"), delta(content="c"))
    assert (told.left, len(told.events), told.finished) == (True, 2, 3.0)
    at_once = record(leave_after=0)
    with pytest.raises(Left):
        Answer(at_once).on_sent(5.0)
    assert (at_once.left, at_once.sent) == (True, 5.0)


@given(st.binary(max_size=200), st.sampled_from([b"data: ", b"", b'data: {"choices": [{"text": ']))
def test_no_garbage_does_more_than_fail(data: bytes, before: bytes) -> None:
    answer = Answer(record())
    answer.on_head(200, SSE)
    try:
        answer.on_data(before + data + b"\n\n", 1.0)
        answer.on_end(2.0)
    except Failed as failure:
        assert failure.kind in {"unreadable event", "error event", "stream cut", "no events"}


@pytest.mark.parametrize("payload", [b"[" * 100_000, b'{"error": ' + b"[" * 100_000, b'{"model": "\xff"}'])
def test_deep_and_undecodable_events_fail_too(payload: bytes) -> None:
    answer = Answer(record())
    answer.on_head(200, SSE)
    with pytest.raises(Failed) as failure:
        answer.on_data(b"data: " + payload + b"\n\n", 1.0)
    assert failure.value.kind == "unreadable event"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "slow down", "code": "x"}}', "slow down"),
        (b'{"error": "slow down"}', "slow down"),
        (b'{"message": "slow down"}', "slow down"),
        (b"<html>slow down", "<html>slow down"),
        (b"[" * 100_000, "[[["),
        (b"\xff\xfe", "\ufffd"),
        (b"", ""),
    ],
)
def test_a_refusal_has_its_status_message_and_the_time_it_asks_for(body: bytes, message: str) -> None:
    told = record()
    answer = Answer(told)
    answer.on_head(429, {"retry-after": "7", "content-type": "application/json"})
    answer.on_data(body, 1.0)
    with pytest.raises(Failed) as failure:
        answer.on_end(2.0)
    assert failure.value.kind == "http 429"
    assert str(failure.value).startswith(message)
    assert (told.status, told.retry_after_s) == (429, 7.0)


def test_retry_after_may_be_a_date_and_nonsense_is_none() -> None:
    cases = {"Fri, 01 Jan 2100 00:00:00 GMT": True, "Fri, 01 Jan 1999 00:00:00 GMT": True, "soon": False, "-3": False}
    for told, understood in cases.items():
        one = record()
        Answer(one).on_head(503, {"retry-after": told})
        assert (one.retry_after_s is not None) is understood
    assert one.retry_after_s is None
    far = record()
    Answer(far).on_head(503, {"retry-after": "Fri, 01 Jan 2100 00:00:00 GMT"})
    assert far.retry_after_s is not None and far.retry_after_s > 4e9 - time.time()


def test_an_answer_in_one_piece_has_its_limit() -> None:
    answer = Answer(record())
    answer.on_head(200, {"content-type": "application/json"})
    with pytest.raises(Failed, match="more than") as failure:
        for _ in range(MOST_EVENT // (1 << 16) + 1):
            answer.on_data(b" " * (1 << 16), 1.0)
    assert failure.value.kind == "answer too large"
