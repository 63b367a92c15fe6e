"""Text to tokens and back, as vLLM's routes do it: what a prompt becomes, what it costs, and what ids stand for."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import Discriminator, Field, Tag

from livery.api.answers import DetokenizedText, TokenizedPrompt, TokenizerInfo, answers
from livery.api.body import WholeBody
from livery.api.boundary import RequestRecord
from livery.api.context import Context, ContextDep, caller_of
from livery.api.reading import AnswerRoute
from livery.api.responses import json_response
from livery.api.sampling_fields import KeptTokens, TokenId, check_kept
from livery.api.schemas import ChatCompletionBody, ModelName
from livery.api.timeouts import until
from livery.jobs import BareText, Job, Options, Prompt

router = APIRouter(route_class=AnswerRoute)


class TokenizeTextBody(WholeBody):
    """A prompt as text. `add_special_tokens`, true by default: those the model expects around it, such as BOS.

    `truncate_prompt_tokens` is a completion's, and -1 leaves room for `max_tokens`.
    """

    model: ModelName | None = None
    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    truncate_prompt_tokens: KeptTokens | None = None
    max_tokens: int | None = Field(None, ge=0, le=1 << 31)

    def to_options(self) -> Options:
        """Raises InvalidParameter."""
        check_kept(self.truncate_prompt_tokens)
        return Options(max_tokens=self.max_tokens, truncate_prompt_tokens=self.truncate_prompt_tokens)

    def to_prompt(self) -> Prompt:
        return BareText(self.prompt) if self.add_special_tokens is False else self.prompt


class TokenizeChatBody(ChatCompletionBody):
    """A conversation, with all that a chat completion's template is given."""

    return_token_strs: bool | None = None

    def to_prompt(self) -> Prompt:
        return self.to_prompts()[0]


class DetokenizeBody(WholeBody):
    """Token ids of one text."""

    model: ModelName | None = None
    tokens: list[TokenId]


def _kind(value: Any) -> str:  # noqa: ANN401  (any JSON)
    """Of JSON, or of the body that was made of it beside the event loop."""
    chat = value.get("messages") is not None if isinstance(value, dict) else isinstance(value, TokenizeChatBody)
    return "chat-body" if chat else "text-body"


# The tags have a hyphen, by which they don't pass for fields in the messages of errors.
TokenizeBody = Annotated[
    Annotated[TokenizeTextBody, Tag("text-body")] | Annotated[TokenizeChatBody, Tag("chat-body")],
    Discriminator(_kind),
    Field(description="A prompt, or messages"),
]


@router.post("/tokenize", responses=answers(TokenizedPrompt))
async def tokenize(body: TokenizeBody, request: Request, context: ContextDep) -> Response:
    """The ids that a request with this prompt would be computed from.

    Where another tenant's adapter puts words or a template of its own around messages, only how many they are.
    """
    if isinstance(body, TokenizeChatBody):
        body.check()
        context.unknown_fields.met(body.unknown_fields)
        asked = body.to_options()
        options = Options(
            max_tokens=asked.max_tokens, truncate_prompt_tokens=asked.truncate_prompt_tokens, tools=asked.tools
        )
        model, param = body.model_name, "messages"
    else:
        context.unknown_fields.met(body.unknown_fields)
        model, param, options = body.model or "", "prompt", body.to_options()
    record: RequestRecord = request.state.record
    wanted = body.timeout if isinstance(body, TokenizeChatBody) else None
    ends = until(request, wanted, context.request_timeout_s)
    job = Job(model, [body.to_prompt()], options, record.id, param, caller_of(request), ends)
    tokens = await context.service.tokenize(job, strings=bool(body.return_token_strs))
    return json_response(
        {
            "count": tokens.count,
            "max_model_len": context.service.info.max_model_len,
            "tokens": tokens.ids,
            "token_strs": tokens.strings,
        }
    )


@router.post("/detokenize", responses=answers(DetokenizedText))
async def detokenize(body: DetokenizeBody, request: Request, context: ContextDep) -> Response:
    """The text that ids stand for, special tokens included."""
    context.unknown_fields.met(body.unknown_fields)
    ends = until(request, None, context.request_timeout_s)
    text = await context.service.detokenize(body.model or "", body.tokens, caller_of(request), ends)
    return json_response({"prompt": text})


@router.get("/tokenizer_info", responses=answers(TokenizerInfo))
async def tokenizer_info(
    request: Request, context: ContextDep, model: Annotated[str, Query(max_length=8 * 256)] = ""
) -> Response:
    """Special tokens by name and the chat template, under the names of a `tokenizer_config.json`."""
    return json_response(await _info(request, context, model))


async def _info(request: Request, context: Context, model: str) -> dict[str, object]:
    ends = until(request, None, context.request_timeout_s)
    facts = await context.service.tokenizer_facts(model, caller_of(request), ends)
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # what any `tokenizer.json` is loaded with
        "model_max_length": context.service.info.max_model_len,
        **facts.named_tokens,
        "chat_template": facts.chat_template,
    }
