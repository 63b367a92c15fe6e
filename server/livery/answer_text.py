"""The tokens of one sequence on their way to the client: text, stops, log-probabilities, each where it belongs.

What a token says may have to wait for the tokens after it: a character comes in pieces, or a stop string may be
beginning. Its entry waits with it, and comes out exactly once: with the text that its own begins in, or at the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from livery.engine.base import GenerationRequest, TokenDelta, TokenLogprobs
from livery.jobs import Options
from livery.refusals import failure_of
from livery.stops import StopBuffer, StopSearch
from livery.text import Detokenizer, Tokenizer

StopReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """A token and its log-probability, with its place among all (1: likeliest). None and 0: it wasn't asked for."""

    token_id: int
    raw: bytes
    logprob: float | None = None
    rank: int = 0


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """One token of prompt or answer: how likely it was, and the likeliest at its place in falling order.

    The token itself is always among those, where any were asked for. `offset` is where its text begins in the
    sequence's, in characters; for a token that goes on with a character, where that one begins.
    """

    own: Likelihood
    top: tuple[Likelihood, ...] = ()
    offset: int = 0
    of_prompt: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """What can be sent by now.

    `scores` are the prompt's tokens apart from the text, `stop` the string that ended it.
    """

    text: str
    reason: StopReason | None
    entries: tuple[TokenEntry, ...] = ()
    scores: tuple[TokenEntry, ...] = ()
    stop: str | None = None


class AnswerText:
    """Text, stops and token count of one sequence."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        request: GenerationRequest,
        options: Options,
        stops: StopSearch,
        prompt: str | None,
        shown: Mapping[int, str] | None = None,
    ) -> None:
        """`stops` finds those of the options; `prompt` is the prompt as its client put it, None for token ids.

        `shown` are special tokens that belong to the text in any case.
        """
        self._tokenizer = tokenizer
        self._options = options
        self._prompt = request.prompt_token_ids
        self._prompt_text = prompt
        self._scores_echo = options.echo and options.logprobs is not None
        # An echoed prompt is text like the answer's: what the answer begins with may complete its last character.
        context = () if self._scores_echo else self._prompt
        self._detokenizer = Detokenizer(tokenizer, context, shown, skip_special_tokens=options.skip_special_tokens)
        self._stops = StopBuffer(stops, keep=options.include_stop)
        self._ending = tokenizer.special_tokens(options.stop)  # the engine ends at them, and no text shows them
        self._min_tokens = options.min_tokens
        ranked = options.answers_made > options.n  # the best are found by their tokens' log-probabilities
        self._with_entries = options.logprobs is not None or options.token_ids or ranked
        self._waiting: deque[TokenEntry] = deque()  # in order; what has come out is gone
        self._scored = 0  # prompt tokens with an entry
        self._begun = False
        self._decoded = 0  # characters that tokens have given, sent or held back
        self._cut = b""  # the bytes of tokens that gave none yet
        self._sent = 0  # characters
        self.count = 0  # tokens of the answer

    def push(self, delta: TokenDelta) -> Piece:
        """What the engine's next tokens let out. Raises GenerationFailed."""
        ended = _ended(delta)
        pieces: list[str] = []
        scores: tuple[TokenEntry, ...] = ()
        if not self._begun or delta.prompt_logprobs:
            scores = self._take_prompt(delta.prompt_logprobs, pieces)
        reason = self._take_answer(delta, ended, pieces)
        text = "".join(pieces)
        self._sent += len(text)
        entries = []
        while self._waiting and (reason or self._waiting[0].offset < self._sent):
            entries.append(self._waiting.popleft())
        ended_by = self._ending.get(delta.token_ids[-1]) if ended == "stop" and delta.token_ids else None
        return Piece(text, reason, tuple(entries), scores, self._stops.met or ended_by)

    # -- inside --------------------------------------------------------------------------------------

    def _take_prompt(self, logprobs: Sequence[TokenLogprobs], pieces: list[str]) -> tuple[TokenEntry, ...]:
        """Echo the prompt, all at once or as far as it is scored; entries apart from the text are returned."""
        options = self._options
        if not self._begun and options.echo and not self._scores_echo:
            pieces.append(self._echo())
        found: list[TokenLogprobs | None] = list(logprobs)
        if not self._begun and options.scores_prompt:
            found.insert(0, None)  # nothing comes before the first token
        self._begun = True
        scores = []
        for own in found:
            token = self._prompt[self._scored]
            self._scored += 1
            if options.prompt_logprobs is not None:
                scores.append(self._entry(token, own, options.prompt_logprobs, of_prompt=True))
            if self._scores_echo:
                self._waiting.append(self._entry(token, own, options.logprobs, of_prompt=True))
                pieces.append(self._decode(token))
        return tuple(scores)

    def _echo(self) -> str:
        text = self._prompt_text
        if text is None:
            text = self._tokenizer.decode(self._prompt, self._options.skip_special_tokens)
        self._decoded += len(text)
        return text

    def _take_answer(self, delta: TokenDelta, ended: StopReason | None, pieces: list[str]) -> StopReason | None:
        if self._options.max_tokens == 0:  # the engine makes one token where none is wanted
            if ended and self._scores_echo:
                pieces.append(self._detokenizer.flush())
            return ended and ("abort" if ended == "abort" else "length")
        last = len(delta.token_ids) - 1
        for position, token in enumerate(delta.token_ids):
            self.count += 1
            if self._with_entries:
                own = delta.logprobs[position] if delta.logprobs else None
                self._waiting.append(self._entry(token, own, self._options.logprobs))
            if ended == "stop" and position == last and not self._options.include_stop:
                break  # the stop token itself is counted, not shown
            said = self._decode(token)
            if ended == "stop" and position == last and not said:
                said = self._detokenizer.flush() + self._ending.get(token, "")
            piece, hit = self._visible(said)
            pieces.append(piece)
            if hit:
                return "stop"
        if ended is None:
            return None
        piece, hit = self._visible(self._detokenizer.flush())
        pieces.append(piece)
        if not hit:
            pieces.append(self._stops.flush())
        return "stop" if hit else ended

    def _decode(self, token: int) -> str:
        """The text that is complete with this token."""
        piece = self._detokenizer.push(token)
        self._decoded += len(piece)
        if self._with_entries:
            self._cut = b"" if piece else self._cut + _piece_of_character(self._tokenizer.token_bytes(token))
        return piece

    def _entry(
        self, token: int, own: TokenLogprobs | None, count: int | None, *, of_prompt: bool = False
    ) -> TokenEntry:
        offset = self._decoded + len(self._cut.decode(errors="ignore"))
        raw = self._tokenizer.token_bytes
        if own is None:
            return TokenEntry(Likelihood(token, raw(token)), (), offset, of_prompt)
        chosen = Likelihood(token, raw(token), own.logprob, own.rank)
        ranked = enumerate(own.top[: count or 0], start=1)
        top = [
            chosen if other == token else Likelihood(other, raw(other), value, rank) for rank, (other, value) in ranked
        ]
        if chosen not in top:
            top.append(chosen)
        return TokenEntry(chosen, tuple(top), offset, of_prompt)

    def _visible(self, piece: str) -> tuple[str, bool]:
        if not piece:
            return "", False
        if self.count <= self._min_tokens:
            return self._stops.pass_by(piece), False
        return self._stops.push(piece)


def _ended(delta: TokenDelta) -> StopReason | None:
    """Why a sequence ended, if it did. Raises GenerationFailed."""
    if delta.finish_reason == "error":
        raise failure_of(delta.error or "The engine failed this request.", delta.code)
    return delta.finish_reason


def _piece_of_character(raw: bytes) -> bytes:
    """The bytes of a token that are no whole characters; nothing of any other."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return raw
    return b""
