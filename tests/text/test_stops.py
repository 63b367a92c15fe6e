"""Stop strings: found wherever the text is cut, never sent in part, nothing else held back for good."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from livery.stops import StopBuffer, StopSearch

# Two letters, so that beginnings of stop strings are everywhere.
WORDS = st.text("ab", max_size=30)
STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


@st.composite
def cut_text(draw: st.DrawFn) -> list[str]:
    text = draw(WORDS)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def run(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    buffer = StopBuffer(stops)
    sent = []
    for piece in pieces:
        text, hit = buffer.push(piece)
        sent.append(text)
        if hit:
            return sent, True
    return [*sent, buffer.flush()], False


@given(cut_text(), STOPS)
def test_text_ends_at_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    sent, hit = run(stops, pieces)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    assert hit == bool(ends)
    if not ends:
        assert "".join(sent) == text
    # What was sent is the text before some stop string, and contains none itself.
    assert text.startswith("".join(sent))
    assert not any(stop in "".join(sent) for stop in stops)


@given(cut_text(), STOPS)
def test_one_letter_at_a_time_it_is_the_stop_that_ends_first(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    sent, hit = run(stops, list(text))
    first = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=None)
    assert hit == (first is not None)
    if first is not None:
        ending = max((stop for stop in stops if text[:first].endswith(stop)), key=len)
        assert "".join(sent) == text[: first - len(ending)]


@given(cut_text(), STOPS, st.integers(0, 30))
def test_where_stops_are_passed_by_one_may_begin_that_ends_later(
    pieces: list[str], stops: list[str], border: int
) -> None:
    """Letter by letter: those that end within the border are text, the first that ends behind it ends the text."""
    text, buffer, sent, hit = "".join(pieces), StopBuffer(stops), "", False
    for at, letter in enumerate(text):
        passed, hit = (buffer.pass_by(letter), False) if at < border else buffer.push(letter)
        sent += passed
        if hit:
            break
        held = text[len(sent) : at + 1]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops) or at >= border
    ends = [end for end in range(border + 1, len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    assert hit == bool(ends)
    if ends:
        assert buffer.met == max((stop for stop in stops if text[: ends[0]].endswith(stop)), key=len)
        assert sent == text[: ends[0] - len(buffer.met)]
    else:
        assert sent + buffer.flush() == text


@given(cut_text(), STOPS)
def test_cut_anywhere_what_is_passed_by_is_the_same(pieces: list[str], stops: list[str]) -> None:
    one, other = StopBuffer(stops), StopBuffer(stops)
    assert "".join(map(one.pass_by, pieces)) == "".join(map(other.pass_by, "".join(pieces)))
    assert one.push("ab") == other.push("ab")


@given(cut_text(), STOPS)
def test_what_is_held_back_could_still_become_a_stop(pieces: list[str], stops: list[str]) -> None:
    buffer = StopBuffer(stops)
    seen = sent = ""
    for piece in pieces:
        seen += piece
        text, hit = buffer.push(piece)
        sent += text
        if hit:
            return
        held = seen[len(sent) :]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_a_stop_over_three_pieces() -> None:
    buffer = StopBuffer(["\n\nUser:"])
    assert buffer.push("Hi.\n") == ("Hi.", False)
    assert buffer.push("\nUs") == ("", False)
    assert buffer.met is None
    assert buffer.push("er: more") == ("", True)
    assert (buffer.flush(), buffer.met) == ("", "\n\nUser:")


def test_a_false_alarm_is_sent() -> None:
    buffer = StopBuffer(["END"])
    assert buffer.push("the EN") == ("the ", False)
    assert buffer.push("tity") == ("ENtity", False)


def test_of_those_that_end_together_the_longest_was_met() -> None:
    for keep, text in ((False, "a"), (True, "a stop")):
        buffer = StopBuffer(["p", "stop", " stop"], keep=keep)
        assert buffer.push("a stops, p") == (text, True)
        assert buffer.met == " stop"


class Counted(list[int]):
    """Counts how often it is looked into."""

    looks = 0

    def __getitem__(self, at: int) -> int:  # type: ignore[override]
        self.looks += 1
        return super().__getitem__(at)


def test_each_character_is_read_once_whatever_is_held_back() -> None:
    """Counted, not timed: stop strings that nearly match everywhere cost no more than their sum, spread out."""
    search = StopSearch(["a" * length + "b" for length in range(100, 256, 10)])
    search._shorter = steps = Counted(search._shorter)
    buffer = StopBuffer(search)
    for _ in range(200):
        assert not buffer.push("aaaa")[1]
    assert not buffer.push("c" * 4)[1]
    assert steps.looks < 2 * 804
    assert buffer.push("a" * 100 + "b") == ("", True)


def test_sequences_share_a_search_and_hold_back_apart() -> None:
    search = StopSearch(["END"])
    one, other = StopBuffer(search), StopBuffer(search)
    assert one.push("E") == ("", False)
    assert other.push("ND") == ("ND", False)
    assert one.push("ND") == ("", True)
