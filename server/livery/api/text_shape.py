"""The JSON of text completions, whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from livery.answer_text import TokenEntry
from livery.api.logprobs_shape import text_columns, text_logprobs, text_token, token_ids
from livery.api.shapes import Answer, Envelope, Json, best, ending, usage_json, written
from livery.generation import ChoiceDelta, EndReason, Usage


@dataclass(frozen=True, slots=True)
class TextShape:
    """POST /v1/completions."""

    envelope: Envelope

    def opening(self, choices: int) -> list[Json]:
        return []

    def chunks(self, delta: ChoiceDelta) -> list[Json]:
        options, entries = self.envelope.options, delta.entries
        logprobs = text_logprobs(entries, options)
        choice = self._choice(delta.index, delta.text, delta.finish_reason, logprobs, token_ids(entries))
        if options.token_ids and delta.prompt_token_ids is not None:
            choice["prompt_token_ids"] = list(delta.prompt_token_ids)
        return [self.envelope.chunk("text_completion", choice)]

    def closing(self, usage: Usage) -> list[Json]:
        if not self.envelope.include_usage:
            return []
        return [{**self.envelope.wrap("text_completion", []), "usage": usage_json(usage)}]

    def token(self, entry: TokenEntry) -> object:
        return None if self.envelope.options.logprobs is None else text_token(entry, self.envelope.options)

    async def whole(self, answers: Sequence[Answer], usage: Usage) -> Json:
        choices = await written(self._whole, best(answers, self.envelope.options))
        return {**self.envelope.wrap("text_completion", choices), "usage": usage_json(usage)}

    def _whole(self, index: int, answer: Answer) -> Json:
        logprobs = text_columns(answer.tokens) if answer.tokens else None
        choice = self._choice(index, answer.text, answer.finish_reason, logprobs, answer.token_ids)
        options = self.envelope.options
        if options.token_ids:
            choice["prompt_token_ids"] = list(answer.prompt_token_ids)
        if options.prompt_logprobs is not None:
            choice["prompt_logprobs"] = answer.scores
        return choice

    def _choice(
        self, index: int, text: str, reason: EndReason | None, logprobs: Json | None, token_ids: Sequence[int]
    ) -> Json:
        choice = {"index": index, "text": text, "logprobs": logprobs, **ending(reason)}
        return {**choice, "token_ids": token_ids} if self.envelope.options.token_ids else choice
