"""What clients may send. Explicit nulls mean absent, unknown fields are ignored, and fields that would change
the answer in a way this server doesn't implement are refused by name.

Turns bodies into the service's `Job`; knows no route and no response.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from livery.api.body import Body, WholeBody
from livery.api.chat_messages import ChatMessage, message_of
from livery.api.chat_tools import ToolChoice, Tools, template_tools, tool_use
from livery.api.ignored import IgnoredFields, Word, ignored
from livery.api.sampling_fields import Likeliest, SamplingFields, TokenId, check_kept
from livery.api.structured import StructuredFields
from livery.api.timeouts import MAX_TIMEOUT_S
from livery.api.unsupported import UNSUPPORTED_IN_CHAT, UNSUPPORTED_IN_COMPLETIONS, refuse_unsupported
from livery.jobs import BareText, ChatPrompt, Options, Prompt
from livery.refusals import InvalidParameter

MAX_ANSWERS = 8  # n
MAX_PROMPTS = 32
MAX_DOCUMENTS = 1024
MAX_TEMPLATE_KWARGS = 64
COMPLETION_MAX_TOKENS = 16  # the default of /v1/completions
QUESTION = "What is the capital of France?"
CHAT_EXAMPLE: JsonDict = {
    "model": "pirate",
    "messages": [{"role": "user", "content": QUESTION}],
    "max_completion_tokens": 48,
}
COMPLETION_EXAMPLE: JsonDict = {
    "model": "pirate",
    "prompt": "The capital of France is",
    "max_tokens": 8,
    "temperature": 0,
}

Text = Annotated[str, Field(min_length=1, max_length=256)]
ModelName = Annotated[str, Field(max_length=8 * 256)]  # a composition names up to 8 adapters


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: with include_usage, every chunk says the usage so far
    include_obfuscation: bool | None = ignored("chunks aren't padded")


class NamingBody(WholeBody):
    """What says which model answers, for whom, and with whom what was computed may be shared."""

    model: ModelName | None = None
    user: str | None = Field(None, max_length=512)
    cache_salt: str | None = Field(None, min_length=1, max_length=512)
    adapter_id: ModelName | None = None  # LoRAX's name for what stands in `model` here
    timeout: float | None = Field(None, gt=0, le=MAX_TIMEOUT_S, description="seconds; answered 504 when they are over")

    @property
    def model_name(self) -> str:
        """The adapter where LoRAX's field names one, else the model."""
        return self.adapter_id or self.model or ""


class GenerationBody(NamingBody, IgnoredFields, SamplingFields, StructuredFields):
    """What both routes share. Ranges are OpenAI's; fields that OpenAI doesn't have are vLLM's."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, le=1 << 31)
    seed: int | None = Field(None, ge=-(1 << 63), lt=(1 << 63) - MAX_ANSWERS)
    stop: Text | Annotated[list[Text], Field(max_length=16)] | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=64)
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    n: int | None = Field(None, ge=1, le=MAX_ANSWERS)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def check(self) -> None:
        """Raises UnsupportedParameter or InvalidParameter for what the schema alone can't say."""
        refuse_unsupported(self.model_extra or {}, self.unsupported)
        if self.stream_options is not None and not self.stream:
            raise InvalidParameter("stream_options is only allowed when stream is true.", "stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidParameter("prompt_logprobs don't come in streams; leave out stream.", "prompt_logprobs")
        check_kept(self.truncate_prompt_tokens)

    def options(self, max_tokens: int | None, default_max_tokens: int | None) -> Options:
        held = self.held()
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Options(
            max_tokens=max_tokens,
            default_max_tokens=default_max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=self.biases,
            allowed_token_ids=tuple(self.allowed_token_ids or ()),
            bad_words=tuple(self.bad_words or ()),
            prompt_logprobs=self.prompt_logprobs,
            truncate_prompt_tokens=self.truncate_prompt_tokens,
            include_stop=bool(self.include_stop_str_in_output),
            skip_special_tokens=self.skip_special_tokens is not False,
            token_ids=bool(self.return_token_ids),
            named_by_id=bool(self.return_tokens_as_token_ids),
            seed=self.seed,
            min_tokens=self.min_tokens or 0,
            stop=stop,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
            n=self.n or 1,
            grammar=held.grammar if held else None,
            grammar_param=held.param if held else "response_format",
            free_form=self.response_format is not None and self.response_format.type == "text",
            cache_salt=self.cache_salt or "",
        )


class ChatCompletionBody(GenerationBody):
    """POST /v1/chat/completions."""

    model_config = ConfigDict(json_schema_extra={"examples": [CHAT_EXAMPLE]})
    unsupported = UNSUPPORTED_IN_CHAT

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, le=1 << 31)
    documents: list[dict[str, Any]] | None = Field(None, max_length=MAX_DOCUMENTS)
    chat_template_kwargs: dict[str, Any] | None = Field(None, max_length=MAX_TEMPLATE_KWARGS)
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = Field(None, description="false leaves it out of the answer")
    reasoning_effort: Word | None = Field(None, description="for chat templates that read it")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Likeliest | None = None

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise InvalidParameter("top_logprobs is only allowed when logprobs is true.", "top_logprobs")

    def to_options(self) -> Options:
        options = self.options(self.max_completion_tokens or self.max_tokens, None)
        tools = tool_use(self.tools, self.tool_choice, self.parallel_tool_calls)
        calls = tools.grammar if tools else None
        return replace(
            options,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            tools=tools,
            # An answer that must be calls has nothing that another format could apply to.
            grammar=calls or options.grammar,
            grammar_param="tools" if calls else options.grammar_param,
            include_reasoning=self.include_reasoning is not False,
        )

    def to_prompts(self) -> list[Prompt]:
        continued = bool(self.continue_final_message)
        effort = {"reasoning_effort": self.reasoning_effort} if self.reasoning_effort else {}
        return [
            ChatPrompt(
                [message_of(message, at) for at, message in enumerate(self.messages)],
                tools=template_tools(self.tools),
                documents=self.documents,
                template_kwargs={**effort, **(self.chat_template_kwargs or {})},
                add_generation_prompt=not continued
                if self.add_generation_prompt is None
                else self.add_generation_prompt,
                continue_final_message=continued,
            )
        ]


class CompletionBody(GenerationBody):
    """POST /v1/completions: a prompt as text or token ids, or a list of such."""

    model_config = ConfigDict(json_schema_extra={"examples": [COMPLETION_EXAMPLE]})
    unsupported = UNSUPPORTED_IN_COMPLETIONS

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    add_special_tokens: bool | None = None  # those that the model expects around a text, such as BOS; true by default
    max_tokens: int | None = Field(None, ge=0, le=1 << 31)
    logprobs: Likeliest | None = None
    echo: bool | None = None
    best_of: int | None = Field(None, ge=1, le=MAX_ANSWERS)

    def check(self) -> None:
        super().check()
        made, wanted = self.best_of or self.n or 1, self.n or 1
        if made < wanted:
            raise InvalidParameter(f"best_of is {made} and n {wanted}: no more are answered than made.", "best_of")
        if made > wanted and self.stream:
            raise InvalidParameter("best_of can't be streamed: the best are known at the end.", "best_of")
        if self.max_tokens == 0 and not self.echo and self.prompt_logprobs is None:
            raise InvalidParameter("max_tokens is 0: nothing would be answered; echo gives the prompt.", "max_tokens")

    def to_options(self) -> Options:
        options = self.options(self.max_tokens, COMPLETION_MAX_TOKENS)
        return replace(options, logprobs=self.logprobs, echo=bool(self.echo), best_of=self.best_of)

    def to_prompts(self) -> list[Prompt]:
        """One prompt per answer group. Raises InvalidParameter."""
        bare = self.add_special_tokens is False
        return [BareText(prompt) if isinstance(prompt, str) and bare else prompt for prompt in self._prompts()]

    def _prompts(self) -> list[str | list[int]]:
        prompts = prompts_in(self.prompt)
        if not prompts:
            raise InvalidParameter("prompt is an empty list.", "prompt")
        if len(prompts) > MAX_PROMPTS:
            raise InvalidParameter(f"{len(prompts)} prompts in one request; at most {MAX_PROMPTS}.", "prompt")
        return prompts


def prompts_in(value: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """One prompt per text or list of ids; none in an empty list."""
    if isinstance(value, str):
        return [value]
    prompts: list[str | list[int]] = []
    ids: list[int] = []
    for item in value:
        if isinstance(item, int):
            ids.append(item)
        else:
            prompts.append(item)
    return prompts or ([ids] if ids else [])


class LoadLoraBody(WholeBody):
    """POST /v1/load_lora_adapter, as vLLM takes it."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False
    is_3d_lora_weight: bool = False


class UnloadLoraBody(WholeBody):
    """POST /v1/unload_lora_adapter, as vLLM takes it."""

    lora_name: str
    lora_int_id: int | None = None
