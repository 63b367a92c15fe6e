"""What a user's script asks of a server through the official client, the same wherever it runs; PEFT is the judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import openai

from peft_judge import Judge

PROMPT = "The weather today is"
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
TOKENS = 16
CLOSE = 2e-3  # of log-probabilities
Check = Callable[[], None]


@dataclass
class Served:
    """A server: where it is, the key, the base's name there, adapters by name, and an alias of the first of these."""

    url: str
    key: str
    base: str
    adapters: tuple[str, ...]
    alias: str
    answers: dict[str, list[int]] = field(default_factory=dict)  # greedy tokens by what was asked


class Script:
    """One run of the script. Each check raises AssertionError, or the client's own error."""

    def __init__(self, served: Served, judge: Judge) -> None:
        self._served, self._judge = served, judge
        self._client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0, timeout=120)
        self._pinned: dict[str, str] = {}

    def checks(self) -> Iterator[tuple[str, Check]]:
        """Names of checks, and what does them; the order counts."""
        yield "models are listed", self.models
        for name in (self._served.base, *self._served.adapters):
            yield f"completion, {self._called(name)}", lambda name=name: self.completion(name)
            yield f"chat, {self._called(name)}", lambda name=name: self.chat(name)
            yield f"chat streamed, {self._called(name)}", lambda name=name: self.streamed(name)
        yield "alias", lambda: self.same_as(self._served.alias, self._served.adapters[0])
        yield "pinned version", lambda: self.same_as(self._pinned[self._served.adapters[0]], self._served.adapters[0])
        yield "log-probabilities", self.logprobs
        yield "unknown model is a 404", self.unknown

    def close(self) -> None:
        self._client.close()

    def models(self) -> None:
        found = {model.id for model in self._client.models.list()}
        missing = {self._served.base, *self._served.adapters, self._served.alias} - found
        assert not missing, f"not listed: {', '.join(sorted(missing))}"

    def completion(self, name: str) -> None:
        raw = self._client.completions.with_raw_response.create(model=name, **self._greedy(prompt=PROMPT))
        tokens = _tokens(raw.parse().choices[0])
        self._judge.check_greedy(self._judged(name), self._judge.ids(PROMPT), tokens)
        self._served.answers[f"completion of {self._called(name)}"] = tokens
        if name in self._served.adapters:
            version = raw.headers["x-livery-adapter"]
            assert version.startswith(f"{name}@"), f"answered by {version}"
            self._pinned[name] = version

    def chat(self, name: str) -> None:
        answer = self._client.chat.completions.create(model=name, **self._greedy(messages=MESSAGES))
        tokens = _tokens(answer.choices[0])
        self._judge.check_greedy(self._judged(name), self._judge.chat_ids(MESSAGES), tokens)
        self._served.answers[f"chat of {self._called(name)}"] = tokens

    def streamed(self, name: str) -> None:
        whole = self._client.chat.completions.create(model=name, **self._greedy(messages=MESSAGES))
        chunks = list(
            self._client.chat.completions.create(
                model=name, stream=True, stream_options={"include_usage": True}, **self._greedy(messages=MESSAGES)
            )
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content, f"{text!r} came in pieces"
        ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
        assert ends == ["length"], f"it ended with {ends}"
        usage = chunks[-1].usage
        assert usage is not None and usage.completion_tokens == TOKENS, f"usage is {usage}"

    def same_as(self, name: str, other: str) -> None:
        found, expected = [_tokens(self._complete(model).choices[0]) for model in (name, other)]
        assert found == expected, f"{name} doesn't answer as {other}"

    def logprobs(self) -> None:
        name = self._served.adapters[0]
        choice = self._client.completions.create(model=name, logprobs=3, **self._greedy(prompt=PROMPT)).choices[0]
        prompt, tokens = self._judge.ids(PROMPT), _tokens(choice)
        rows = self._judge.logits(name, prompt + tokens).log_softmax(-1)[len(prompt) - 1 :]
        assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
        for place, (told, token) in enumerate(zip(choice.logprobs.token_logprobs, tokens, strict=True)):
            meant = float(rows[place][token])
            assert told is not None and math.isclose(told, meant, abs_tol=CLOSE), f"token {place}: {told}, not {meant}"

    def unknown(self) -> None:
        try:
            self._complete("nobody")
        except openai.NotFoundError as error:
            assert error.code == "model_not_found", f"its code is {error.code}"
        else:
            raise AssertionError("a model that isn't there answered")

    def _complete(self, name: str) -> Any:
        return self._client.completions.create(model=name, **self._greedy(prompt=PROMPT))

    def _greedy(self, **asked: Any) -> dict[str, Any]:
        extra = {"return_token_ids": True, "ignore_eos": True}
        return {"max_tokens": TOKENS, "temperature": 0, "extra_body": extra, **asked}

    def _judged(self, name: str) -> str | None:
        return name if name in self._served.adapters else None

    def _called(self, name: str) -> str:
        """The base's name differs from set-up to set-up."""
        return "base" if name == self._served.base else name


def _tokens(choice: Any) -> list[int]:
    """Of Livery's own field `token_ids`."""
    return list(choice.token_ids)
