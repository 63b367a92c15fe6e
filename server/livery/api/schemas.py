"""What clients may send. Explicit nulls mean absent, unknown fields are ignored, and fields that would change
the answer in a way this server doesn't implement are refused by name.

Turns bodies into the service's `Job`; knows no route and no response.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from livery.api.plain_json import check_plain
from livery.chat_template import Message
from livery.refusals import InvalidParameter, UnsupportedParameter
from livery.service import ChatPrompt, Options, Prompt

MAX_ANSWERS = 8  # n
MAX_PROMPTS = 32
COMPLETION_MAX_TOKENS = 16  # the default of /v1/completions

Text = Annotated[str, Field(min_length=1, max_length=256)]
ModelName = Annotated[str, Field(max_length=8 * 256)]  # a composition names up to 8 adapters
TokenId = Annotated[int, Field(ge=0)]


class _Body(BaseModel):
    # Extra fields are kept to be looked at by `refuse_unsupported`. Strict: "0.5" and true are no numbers.
    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _WholeBody(_Body):
    """What stands at the top of a request. Raises InvalidParameter for text or depth that nothing could take."""

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: object) -> object:
        check_plain(value)
        return value


class TextPart(_Body):
    type: str
    text: str | None = None


class ChatMessage(_Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class StreamOptions(_Body):
    include_usage: bool | None = None


class GenerationBody(_WholeBody):
    """What both routes share. Ranges are OpenAI's; fields that OpenAI doesn't have are vLLM's."""

    model: ModelName | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)  # 0 keeps the best token alone
    top_k: int | None = Field(None, ge=-1, le=1 << 31)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(1 << 63), lt=(1 << 63) - MAX_ANSWERS)
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=64)
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    n: int | None = Field(None, ge=1, le=MAX_ANSWERS)
    user: str | None = Field(None, max_length=512)
    cache_salt: str | None = Field(None, min_length=1, max_length=512)
    adapter_id: ModelName | None = None  # LoRAX's name for what stands in `model` here

    @property
    def model_name(self) -> str:
        """The adapter where LoRAX's field names one, else the model."""
        return self.adapter_id or self.model or ""

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self) -> None:
        """Raises UnsupportedParameter or InvalidParameter for what the schema alone can't say."""
        for rule in UNSUPPORTED:
            value = (self.model_extra or {}).get(rule.name)
            if value is not None and not rule.harmless(value):
                raise UnsupportedParameter(f"{rule.name} is not supported. {rule.remedy}".rstrip(), rule.name)
        if self.stream_options is not None and not self.stream:
            raise InvalidParameter("stream_options is only allowed when stream is true.", "stream_options")

    def options(self, max_tokens: int | None, default_max_tokens: int | None) -> Options:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Options(
            max_tokens=max_tokens,
            default_max_tokens=default_max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            min_tokens=self.min_tokens or 0,
            stop=stop,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            n=self.n or 1,
            cache_salt=self.cache_salt or "",
        )


class ChatCompletionBody(GenerationBody):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)

    def to_options(self) -> Options:
        return self.options(self.max_completion_tokens or self.max_tokens, None)

    def to_prompts(self) -> list[Prompt]:
        return [ChatPrompt([_message(message, at) for at, message in enumerate(self.messages)])]


class CompletionBody(GenerationBody):
    """POST /v1/completions: a prompt as text or token ids, or a list of such."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]

    def to_options(self) -> Options:
        return self.options(self.max_tokens, COMPLETION_MAX_TOKENS)

    def to_prompts(self) -> list[Prompt]:
        """One prompt per answer group. Raises InvalidParameter."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            raise InvalidParameter("prompt is an empty list.", "prompt")
        prompts: list[Prompt] = []
        ids: list[int] = []
        for item in self.prompt:
            if isinstance(item, int):
                ids.append(item)
            else:
                prompts.append(item)
        if len(prompts) > MAX_PROMPTS:
            raise InvalidParameter(f"{len(prompts)} prompts in one request; at most {MAX_PROMPTS}.", "prompt")
        return prompts or [ids]


class LoadLoraBody(_WholeBody):
    """POST /v1/load_lora_adapter, as vLLM takes it."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False
    is_3d_lora_weight: bool = False


class UnloadLoraBody(_WholeBody):
    """POST /v1/unload_lora_adapter, as vLLM takes it."""

    lora_name: str
    lora_int_id: int | None = None


class Rule(NamedTuple):
    """A field we know and don't implement, with the values that ask for nothing."""

    name: str
    harmless: Callable[[Any], bool]
    remedy: str = ""


def _only(*values: object) -> Callable[[Any], bool]:
    """One of the values, where 0 isn't false and 1 isn't true."""
    return lambda value: any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


UNSUPPORTED = (
    Rule("logprobs", _only(False)),
    Rule("top_logprobs", _only(0)),
    Rule("prompt_logprobs", _only()),
    Rule("logit_bias", _only({})),
    Rule("presence_penalty", _only(0)),
    Rule("frequency_penalty", _only(0)),
    Rule("repetition_penalty", _only(1)),
    Rule("length_penalty", _only(1)),
    Rule("bad_words", _only([])),
    Rule("allowed_token_ids", _only()),
    Rule("tools", _only(), "Describe the tools in the system message instead."),
    Rule("tool_choice", _only("none")),
    Rule("functions", _only(), "Describe the functions in the system message instead."),
    Rule("function_call", _only("none")),
    Rule("response_format", _only({"type": "text"}), "Ask for the format in the messages instead."),
    Rule("structured_outputs", _only({}), "Ask for the format in the messages instead."),
    *(
        Rule(f"guided_{kind}", _only(), "Ask for the format in the messages instead.")
        for kind in ("json", "regex", "choice", "grammar")
    ),
    Rule("modalities", _only(["text"])),
    Rule("audio", _only()),
    Rule("web_search_options", _only()),
    Rule("moderation", _only()),
    Rule("echo", _only(False)),
    Rule("best_of", _only(1), "Use n instead."),
    Rule("suffix", _only("")),
    Rule("use_beam_search", _only(False)),
    Rule("chat_template", _only(), "The model's own template is used."),
    Rule("chat_template_kwargs", _only({})),
    Rule("documents", _only([])),
    Rule("add_generation_prompt", _only(True)),
    Rule("continue_final_message", _only(False)),
    Rule("truncate_prompt_tokens", _only()),
    Rule("prompt_embeds", _only()),
    Rule("include_stop_str_in_output", _only(False)),
    Rule("skip_special_tokens", _only(True)),
    Rule("return_token_ids", _only(False)),
    Rule("lora_path", _only(), "Name the adapter in `model`."),
    Rule("adapter_source", _only("local"), "Add the adapter with PUT /v1/adapters/NAME first."),
    Rule("merged_adapters", _only(), "Name several in `model`, as in a+0.5*b."),
)


def _message(message: ChatMessage, at: int) -> Message:
    """One message as the template sees it: plain data, text content only."""
    plain: dict[str, object] = {"role": message.role, "content": _content(message, at)}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        calls = enumerate(message.tool_calls)
        plain["tool_calls"] = [_tool_call(call, f"messages.{at}.tool_calls.{index}") for index, call in calls]
    return plain


def _content(message: ChatMessage, at: int) -> str:
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        if message.role != "assistant":
            raise InvalidParameter(f"A {message.role} message needs content.", f"messages.{at}.content")
        return ""
    texts = []
    for index, part in enumerate(message.content):
        param = f"messages.{at}.content.{index}"
        if part.type not in ("text", "refusal"):
            raise UnsupportedParameter(f"Content parts of type {part.type[:64]!r} are not supported; send text.", param)
        text = part.text if part.type == "text" else (part.model_extra or {}).get("refusal")
        if not isinstance(text, str):
            raise InvalidParameter("A text part needs text.", f"{param}.{part.type}")
        texts.append(text)
    return "\n".join(texts)


def _tool_call(call: dict[str, Any], at: str) -> dict[str, Any]:
    """Templates expect arguments as an object, the API carries them as JSON text."""
    param = f"{at}.function.arguments"
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    except RecursionError:
        raise InvalidParameter(f"{param} is nested too deeply.", param) from None
    check_plain(arguments, param)
    return {**call, "function": {**function, "arguments": arguments}}
