"""What clients may send to the routes that give vectors, classes and scores.

Fields that OpenAI doesn't have are vLLM's, but for `pooling`, which is ours.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from livery.api.ignored import Metadata, Name, ignored
from livery.api.sampling_fields import TokenId
from livery.api.schemas import NamingBody, prompts_in
from livery.api.unsupported import UNSUPPORTED_IN_POOLING, refuse_unsupported
from livery.jobs import PoolingJob
from livery.lease import Caller
from livery.refusals import InvalidParameter

MAX_INPUTS = 2048  # OpenAI's

# Checked up to the first item that doesn't fit: the other branches of the union would each report all of a long list.
Texts = Annotated[list[str], Field(fail_fast=True)]
Ids = Annotated[list[TokenId], Field(fail_fast=True)]
Input = str | Texts | Ids | Annotated[list[Ids], Field(fail_fast=True)]


class PoolingBody(NamingBody):
    """What these routes share."""

    unsupported = UNSUPPORTED_IN_POOLING

    metadata: Metadata | None = ignored("nothing is stored")
    priority: int | None = ignored("requests are served as they come")
    request_id: Name | None = ignored("send the header `x-request-id`")

    def check(self) -> None:
        """Raises UnsupportedParameter for fields that would change the answer and aren't implemented."""
        refuse_unsupported(self.model_extra or {}, self.unsupported)

    @abstractmethod
    def job(self, request_id: str, caller: Caller) -> PoolingJob:
        """What the service is asked for. Raises InvalidParameter."""


class EmbeddingBody(PoolingBody):
    """POST /v1/embeddings."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"input": ["Ahoy", "matey"]}]})

    input: Input
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    pooling: Literal["last", "mean"] | None = None
    normalize: bool | None = None

    def job(self, request_id: str, caller: Caller) -> PoolingJob:
        return PoolingJob(
            self.model_name,
            "embed",
            prompts_of(self.input, "input"),
            request_id,
            kind=self.pooling,
            dimensions=self.dimensions,
            normalize=self.normalize is not False,
            cache_salt=self.cache_salt or "",
            caller=caller,
        )


class ClassifyBody(PoolingBody):
    """POST /classify. Without `use_activation` the numbers are the head's own."""

    input: Input
    use_activation: bool | None = None

    def job(self, request_id: str, caller: Caller) -> PoolingJob:
        prompts = prompts_of(self.input, "input")
        return PoolingJob(
            self.model_name, "classify", prompts, request_id, cache_salt=self.cache_salt or "", caller=caller
        )


class ScoreBody(PoolingBody):
    """POST /v1/score: one text beside each of the others, or pairs of two lists of one length."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text_1": "Ahoy", "text_2": ["Hello", "parrots"]}]})

    text_1: str | Texts
    text_2: str | Texts
    use_activation: bool | None = None

    def job(self, request_id: str, caller: Caller) -> PoolingJob:
        first, second = (one if isinstance(one, list) else [one] for one in (self.text_1, self.text_2))
        for param, texts in (("text_1", first), ("text_2", second)):
            _check_count(texts, param)
        if len(first) not in (1, len(second)):
            raise InvalidParameter(
                f"text_1 has {len(first)} texts and text_2 {len(second)}; text_1 is one, or as many as text_2.",
                "text_1",
            )
        places = {text: place for place, text in enumerate(dict.fromkeys([*first, *second]))}
        firsts = first if len(first) > 1 else first * len(second)
        return PoolingJob(
            self.model_name,
            "score",
            list(places),
            request_id,
            "text_2",
            [(places[one], places[other]) for one, other in zip(firsts, second, strict=True)],
            cache_salt=self.cache_salt or "",
            caller=caller,
        )


def prompts_of(value: str | list[str] | list[int] | list[list[int]], param: str) -> list[str | list[int]]:
    """One prompt per text or list of ids. Raises InvalidParameter."""
    prompts = prompts_in(value)
    if not isinstance(value, str):
        _check_count(prompts, param)
    return prompts


def _check_count(prompts: list[str] | list[str | list[int]], param: str) -> None:
    if not 0 < len(prompts) <= MAX_INPUTS:
        raise InvalidParameter(f"{param} has {len(prompts)} entries; 1 to {MAX_INPUTS} are possible.", param)
