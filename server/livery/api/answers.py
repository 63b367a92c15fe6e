"""What answers look like, for the API's description (GET /openapi.json): nothing is validated or serialised by it.

What a client may rely on stands here; answers may hold more. `answers` goes to the decorators of routes.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from livery_adapters.layout import Task

Responses = dict[int | str, dict[str, Any]]
Digest = Annotated[str, Field(description="SHA-256 in hexadecimal")]
Generation = Annotated[int, Field(description="Counts changes of the name; send it back as expected_generation")]
Time = Annotated[int, Field(description="Unix time in seconds")]


def answers(model: type[BaseModel], *also: int, streamed: bool = False) -> Responses:
    """A route's success: JSON of this shape with status 200, and the statuses `also`, or a stream of chunks."""
    told: dict[str, Any] = {"model": model, "description": " ".join((model.__doc__ or "").split())}
    if streamed:
        chunks = 'data: {"id": …}\n\ndata: {"id": …}\n\ndata: [DONE]\n\n'
        told["content"] = {"text/event-stream": {"schema": {}, "example": chunks}}  # events have names on some routes
        told["description"] += " With `stream`: server-sent events, one chunk each, and [DONE] at the end."
    return {status: dict(told) for status in (200, *also)}


def plain(description: str, example: str) -> Responses:
    """A route's success in words; its `response_class` is Response, or JSON would be described beside it."""
    content = {"text/plain": {"schema": {"type": "string"}, "example": example}}
    return {200: {"description": description, "content": content}}


class CachedTokens(BaseModel):
    cached_tokens: int


class TokenUsage(BaseModel):
    """Tokens of a request, and how many of its prompt's the prefix cache had."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens | None = None


class _Generated(BaseModel):
    id: str
    created: Time
    model: Annotated[str, Field(description="The name that the request used")]
    system_fingerprint: Annotated[str, Field(description="Changes with the base, the engine or the adapter's version")]


class FunctionCall(BaseModel):
    name: str
    arguments: Annotated[str, Field(description="JSON")]


class ToolCall(BaseModel):
    id: str
    type: Literal["function"]
    function: FunctionCall


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls", "abort"]


class ChatCompletion(_Generated):
    """The model's answers to a conversation."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: TokenUsage


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "abort"]


class TextCompletion(_Generated):
    """Texts that go on where the prompts end."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: TokenUsage


class Model(BaseModel):
    """The base model or an adapter, as a request may name it."""

    id: str
    object: Literal["model"]
    created: Time
    owned_by: str
    parent: Annotated[str | None, Field(description="An adapter's base model")]
    max_model_len: Annotated[int, Field(description="Tokens of prompt and answer together")]
    digest: Digest | None
    task: Annotated[Task | None, Field(description="What it was trained for; left out in lists")] = None


class PromptUsage(BaseModel):
    """Tokens of a request that generates none."""

    prompt_tokens: int
    total_tokens: int


class _Pooled(BaseModel):
    id: str
    object: Literal["list"]
    created: Time
    model: Annotated[str, Field(description="The name that the request used")]
    usage: PromptUsage


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: Annotated[list[float] | str, Field(description="Numbers, or fp32 ones as base64, little-endian")]


class Embeddings(_Pooled):
    """A vector per input, in their order."""

    data: list[Embedding]


class Classified(BaseModel):
    index: int
    label: str
    probs: list[float]
    num_classes: int


class Classes(_Pooled):
    """The likeliest class of every input, and the probabilities of all."""

    data: list[Classified]


class Score(BaseModel):
    index: int
    object: Literal["score"]
    score: float


class Scores(_Pooled):
    """How close the texts of each pair are."""

    data: list[Score]


class ModelList(BaseModel):
    """Everything that a request may name as its model."""

    object: Literal["list"]
    data: list[Model]


class DeletedModel(BaseModel):
    """The adapter takes no new requests."""

    id: str
    object: Literal["model"]
    deleted: Literal[True]


class Version(BaseModel):
    """One version of an adapter."""

    version: int
    digest: Digest
    active: bool
    proven: bool
    peft_type: str
    bytes: int
    created: Time
    profile: dict[str, Any]
    coverage: Annotated[dict[str, Any], Field(description="What of the adapter is applied, module by module")]


class VersionList(BaseModel):
    """One page of an adapter's history, newest first; `next_after` is the version that the next one is older than."""

    object: Literal["list"]
    name: str
    data: list[Version]
    next_after: int | None
    has_more: bool


class Pushed(BaseModel):
    """The version that an upload became, active or not; `model` pins it, `seconds` are those of each stage."""

    version: int | None
    digest: Digest
    model: str
    system_fingerprint: Annotated[str, Field(description="What the answers carry that this version makes")]
    seconds: dict[str, float]


class Adapter(BaseModel):
    """A name, the version behind it, and where that is."""

    name: str
    object: Literal["adapter"]
    owner: Annotated[str, Field(description="The tenant it belongs to; `default` is the operator.")]
    state: Annotated[str, Field(description="ready, failed, loading, draining, ...")]
    source: str
    pinned: bool
    generation: Generation
    pushed: Annotated[Pushed | None, Field(description="With the answer to an upload")] = None


class AdapterProfile(BaseModel):
    """What requests for the adapter get where they don't say otherwise."""

    name: str
    generation: Generation
    digest: Digest | None
    profile: dict[str, Any]


class AdapterList(BaseModel):
    """One page of adapters by name; `next_after` is where the next one starts."""

    object: Literal["list"]
    base: str
    data: list[Adapter]
    next_after: str | None
    has_more: bool


class Shared(BaseModel):
    """The tenants that may use an adapter beside its owner."""

    name: str
    shared_with: list[str]


class Leaving(BaseModel):
    """The adapter takes no new requests; `requests` are still under way."""

    name: str
    state: str
    requests: int


class CheckedAdapter(BaseModel):
    """The adapter would be taken in; what of it would be applied."""

    ok: Literal[True]
    coverage: dict[str, Any]


class Target(BaseModel):
    adapter: str
    weight: float


class AliasView(BaseModel):
    """A name that shares its requests out."""

    name: str
    object: Literal["alias"]
    owner: str
    targets: list[Target]
    sticky: Literal["user", "key", "none"]
    generation: Generation
    updated: Time


class AliasList(BaseModel):
    """One page of aliases by name; `next_after` is where the next one starts."""

    object: Literal["list"]
    data: list[AliasView]
    next_after: str | None
    has_more: bool


class DeletedAlias(BaseModel):
    """The name is free."""

    name: str
    deleted: Literal[True]


class Standing(BaseModel):
    """How the server is."""

    status: Literal["ok", "busy", "restarting", "ready"]


class Alive(BaseModel):
    """The process answers."""


class ServerVersion(BaseModel):
    """Which Livery this is."""

    version: str


class ServerLoad(BaseModel):
    """Answers under way or waiting."""

    server_load: int


class TokenizedPrompt(BaseModel):
    """What a prompt is computed from."""

    count: int
    max_model_len: int
    tokens: Annotated[list[int] | None, Field(description="None where an adapter's owner has words in the prompt")]
    token_strs: Annotated[list[str] | None, Field(description="As the vocabulary spells them, where asked for")]


class DetokenizedText(BaseModel):
    """What token ids stand for."""

    prompt: str


class TokenizerInfo(BaseModel):
    """What `tokenizer_config.json` says of special tokens, each by its name, and the chat template."""

    model_config = ConfigDict(extra="allow")

    tokenizer_class: str
    model_max_length: int
    chat_template: str | None


class ResponseObject(BaseModel):
    """A response, as OpenAI's newer API has it."""

    id: str
    object: Literal["response"]
    created_at: Time
    status: Literal["completed", "incomplete"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any]
