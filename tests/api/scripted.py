"""A server whose model says what a test wants it to, over any chat template; what tests of tools ask it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from openai.types.chat import ChatCompletionMessage

from api.live_server import BASE, LiveServer, Setup
from livery.engine.base import GenerationRequest
from livery.engine.fake import Behaviour
from livery.models import resolve_model
from livery.reading import ParserNames
from livery.text import Tokenizer
from livery.tokenizer_files import TokenizerFiles, load_tokenizer_files

FILES = load_tokenizer_files(resolve_model("smollm2-135m-instruct").path)
ASK: list[Any] = [{"role": "user", "content": "Weather in Zürich?"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
TOOLS: list[Any] = [WEATHER, NOW]
STRICT: Any = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
CITY = '{"city": "Zürich"}'

THOUGHT = "<think>\nIt rains\noften.\n</think>\n\nGrey."
SAID = {
    "hermes": f'Let me look.\n<tool_call>\n{{"name": "weather", "arguments": {CITY}}}\n</tool_call>',
    "llama3": f'{{"name": "weather", "parameters": {CITY}}}',
    "mistral": f'[TOOL_CALLS] [{{"name": "weather", "arguments": {CITY}}}]',
    "phi": f'<|tool_call|>[{{"name": "weather", "arguments": {CITY}}}]<|/tool_call|>',
    "qwen3_coder": "<tool_call>\n<function=weather>\n<parameter=city>\nZürich\n</parameter>\n</function>\n</tool_call>",
}


class Scripted:
    """A server whose engine says what it is told, over a chat template of one's choice."""

    def __init__(self, template: str | None, folder: Path, parsers: ParserNames) -> None:
        self.tokenizer = Tokenizer(TokenizerFiles(FILES.tokenizer, template, FILES.named_tokens))
        self.says = ""
        self.behaviour = behaviour = Behaviour(script=self._script)
        setup = Setup(behaviour, max_model_len=2048, eos_token_ids=(0,), parsers=parsers)
        self.server = LiveServer(setup, self.tokenizer, folder)
        self.server.start()

    def _script(self, _request: GenerationRequest) -> list[int]:
        return [*self.tokenizer.encode(self.says), 0]  # the end of the sequence

    @property
    def last(self) -> GenerationRequest:
        return self.server.engine.requests[-1]

    def whole(self, says: str, **fields: Any) -> Any:
        self.says = says
        return self.server.client().chat.completions.create(model=BASE, messages=ASK, **fields).choices[0]

    def streamed(self, says: str, **fields: Any) -> list[Any]:
        self.says = says
        chunks = self.server.client().chat.completions.create(model=BASE, messages=ASK, stream=True, **fields)
        return [chunk.choices[0] for chunk in chunks]


def calls_of(message: ChatCompletionMessage) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]  # type: ignore[union-attr]
