"""How a planned request is worded: which endpoint, which fields, what was said before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from livery_loadtest.script import Planned

NO_FIELDS: Mapping[str, Any] = {}

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Dialect:
    """Chats or plain completions; `ignore_eos`: answers are as long as asked for, whatever the model would say."""

    chat: bool = False
    ignore_eos: bool = True
    temperature: float = 0.0

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def body(
        self, planned: Planned, said: Sequence[tuple[str, str]] = (), fields: Mapping[str, Any] = NO_FIELDS
    ) -> bytes:
        """The JSON body of a streamed request with usage at its end.

        `said` are the turns before, each what the user said and what was answered; `fields` go over all others.
        """
        body: dict[str, Any] = {
            "model": planned.model,
            "max_tokens": planned.max_tokens,
            "temperature": self.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.chat:
            turns = [(role, text) for turn in said for role, text in zip(("user", "assistant"), turn, strict=True)]
            body["messages"] = [{"role": role, "content": text} for role, text in (*turns, ("user", planned.text))]
        else:
            body["prompt"] = planned.text
        if planned.json_schema is not None:
            schema = {"name": "answer", "strict": True, "schema": planned.json_schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif self.ignore_eos:
            body["ignore_eos"] = True
        return _encode({**body, **fields})
