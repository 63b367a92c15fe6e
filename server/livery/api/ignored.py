"""Fields that are taken and change nothing here: looked at for shape and size, then left alone, each with its reason.

Clients send them to OpenAI or to vLLM without a second thought, so refusing them would only cost users their client.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from livery.api.body import WholeBody

IGNORED = "x-livery-ignored"  # marks such a field in the schema

Word = Annotated[str, Field(max_length=64)]
Name = Annotated[str, Field(max_length=512)]
Table = Annotated[dict[str, Any], Field(max_length=64)]
Metadata = Annotated[dict[Word, Name], Field(max_length=16)]  # OpenAI's bounds


def ignored(reason: str) -> Any:  # noqa: ANN401  (what pydantic's own Field is declared to return)
    """A field that may be given and changes nothing, for this reason."""
    return Field(None, description=reason, json_schema_extra={IGNORED: True})


class IgnoredFields(WholeBody):
    """What chat completions and completions take along without an effect. Nothing of it is stored."""

    metadata: Metadata | None = ignored("nothing is stored")
    store: bool | None = ignored("nothing is stored")
    service_tier: Word | None = ignored('there is one tier; the answer says `"default"` where this is set')
    safety_identifier: Name | None = ignored("nobody is reported to anybody")
    prompt_cache_key: Name | None = ignored("the prefix cache finds prompts by content; `cache_salt` keeps them apart")
    prompt_cache_options: Table | None = ignored("the prefix cache finds prompts by content")
    prompt_cache_retention: Word | None = ignored("what isn't used for longest goes first")
    verbosity: Word | None = ignored("models here take no such hint; say it in the messages")
    prediction: Table | None = ignored("it changes no token; `--speculate` guesses ahead by itself")
    priority: int | None = ignored("requests are served as they come")
    request_id: Name | None = ignored("send the header `x-request-id`")
    session_id: Name | None = ignored("the prefix cache finds prompts by content")
    spaces_between_special_tokens: bool | None = ignored("tokens are joined as the tokenizer does it")
    stream_interval: int | None = ignored("every piece is sent at once")
    kv_transfer_params: Table | None = ignored("the cache of one server stays there")
    ec_transfer_params: Table | None = ignored("the cache of one server stays there")
    vllm_xargs: Table | None = ignored("for plug-ins of vLLM")
    mm_processor_kwargs: Table | None = ignored("text only")
    media_io_kwargs: Table | None = ignored("text only")
    return_mm_kwargs: bool | None = ignored("text only")
    return_token_offsets: bool | None = ignored("of a route of vLLM that isn't served here")
    routed_experts_prompt_start: int | None = ignored("routing of experts isn't returned")
