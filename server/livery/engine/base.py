"""The seam between the service and an engine: token ids in, token ids out.

Everything here crosses a process border as msgpack, so it is plain frozen data. An engine knows no text, no
HTTP, no adapter names and no metrics format: adapters reach it as a digest and a directory of verified files.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal, Protocol

import msgspec

from livery.engine.figures import EngineFigures, PromptRead, RequestTimes
from livery_adapters.base_model import BaseShapes
from livery_adapters.effect import AdapterEffect
from livery_adapters.names import OPERATOR_TENANT

FinishReason = Literal["stop", "length", "abort", "error"]
CPU_KV_SHARE = 0.25  # of a CPU's free memory, for the KV cache, with any engine that isn't told how much


class AdapterPart(msgspec.Struct, frozen=True):
    """One stored version: two files, and how they take part in what is applied.

    `digest` is the SHA-256 of its configuration and weights; `path` is a directory that holds
    `adapter_config.json` and `adapter_model.safetensors` and never changes while the version is in use.
    """

    digest: str
    path: str
    weight: float = 1.0
    approximate: int = 0  # rank of the factorisation for a type that has no exact form; 0 refuses such types
    verified: bool = False  # hashed since it was written here: reading it need not hash it again
    added_tokens: int = 0  # beyond the base's vocabulary; the engine refuses to load it where that isn't so


class AdapterRef(msgspec.Struct, frozen=True):
    """What a request runs under. `digest` names the converted form, with everything that it depends on.

    One part is the usual case; several are added up by their weights, which only additive adapters allow.
    """

    digest: str
    parts: tuple[AdapterPart, ...]

    @classmethod
    def of(cls, digest: str, path: str, added_tokens: int = 0) -> AdapterRef:
        """One version, applied as it is."""
        return cls(digest, (AdapterPart(digest, path, added_tokens=added_tokens),))

    @property
    def added_tokens(self) -> int:
        """How many ids its requests may use beyond the base's; sums are of adapters without any."""
        return max(part.added_tokens for part in self.parts)


class Grammar(msgspec.Struct, frozen=True):
    """What a whole answer must match: a JSON schema as JSON text, a regular expression, or a Lark grammar.

    Any JSON object is the schema `{"type": "object"}`.
    """

    kind: Literal["json_schema", "regex", "lark"]
    source: str


class SamplingParams(msgspec.Struct, frozen=True):
    """How tokens are chosen. `temperature == 0` is greedy and ignores `top_p`, `top_k`, `min_p` and `seed`.

    `seed` fixes the draw of each token independently of the batch; `None` lets the engine pick one.
    `stop_token_ids` come on top of the model's own end-of-sequence ids unless `ignore_eos`.

    Before a token is chosen, a row's logits get `logit_bias` added; then those of tokens in prompt or answer are
    divided by `repetition_penalty` where positive, else multiplied (Keskar et al., "CTRL", 2019), and those of
    answered tokens lose `frequency_penalty` for each time and `presence_penalty` once (OpenAI's). Then only
    `allowed_token_ids` stay, where some are given, without those that would complete one of `bad_words`, each the
    tokens of a word.

    `logprobs` asks for the log-probability of each token and so many of the likeliest ones at its place,
    `prompt_logprobs` for those of the prompt's tokens but the first: log_softmax of the model's own logits in fp32,
    whatever changes them afterwards. With `prompt_logprobs_start` only of the prompt's tokens from that position on,
    and what is before it may be found in the prefix cache (as SGLang's `logprob_start_len`).
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    seed: int | None = None
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    grammar: Grammar | None = None  # only tokens that it can go on with are chosen
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprobs_start: int = 0


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """How likely one token was: its log-probability, its place among all (1: likeliest), and the likeliest there.

    `top` are ids and log-probabilities in falling order, as many as were asked for; the token itself may be among them.
    Probabilities of nothing come as -9999: JSON has no infinity.
    """

    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()


class Pooling(msgspec.Struct, frozen=True):
    """What a request gets in place of tokens: one vector, from what the model's last layer says of its prompt.

    That is the hidden state after the final norm: of the last token, or the mean over all. With `head` the adapter's
    own head makes logits of it, one per class. Otherwise its first `dimensions` numbers (0: all) are the embedding,
    scaled to length 1 with `normalize`.
    """

    kind: Literal["last", "mean"] = "last"
    head: bool = False
    dimensions: int = 0
    normalize: bool = True


class GenerationRequest(msgspec.Struct, frozen=True):
    """One sequence to generate. `request_id` is unique among the requests an engine holds.

    Tokens before position `adapter_start` run on the base (activated LoRA), the others under `adapter`. What has
    been computed for a prompt is used again only for requests of the same `tenant` with the same `cache_salt`, and the
    same `account` where one is given: a tenant's name may come to be another's.
    With `pooling` nothing is generated: the only delta carries the vector, and finish_reason "stop".

    `weight` is the tenant's share of the engine beside others' that wait as well, `resident_bytes` the most device
    memory that its adapters may take (0: as much as there is), `deadline_s` the time within which the request has to
    be done, in seconds from when the engine takes it (0: any).
    """

    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    adapter: AdapterRef | None = None
    adapter_start: int = 0
    tenant: str = OPERATOR_TENANT
    cache_salt: str = ""
    pooling: Pooling | None = None
    weight: float = 1.0
    resident_bytes: int = 0
    deadline_s: float = 0.0
    account: str = ""


class Asker(msgspec.Struct, frozen=True):
    """A tenant that asks for a version: its weight, and the most bytes that its versions may take (0: any)."""

    tenant: str = OPERATOR_TENANT
    weight: float = 1.0
    limit: int = 0

    @classmethod
    def of(cls, request: GenerationRequest) -> Asker:
        """Whose a request is."""
        return cls(request.tenant, request.weight, request.resident_bytes)


NOBODY = Asker()


# How the ids of an adapter's first, proving run begin: nobody's request.
CANARY = "canary-"


class TokenDelta(msgspec.Struct, frozen=True):
    """New tokens of one request. The last delta of a request carries `finish_reason`.

    With `finish_reason == "error"`, `error` says what went wrong, in words fit for the client, and `code` in one word
    where programs have to tell it from other errors.
    A stop token ends the sequence and is included as its last token. The first delta with tokens says how many of
    the prompt's tokens were not computed but found in the prefix cache. One that ends a request with "error" or "abort"
    says that too, and with `prompt_tokens` how many of the prompt's tokens were computed or found until then. `pooled`
    are fp32 numbers in the machine's own order of bytes. `logprobs` are those of `token_ids`, where they were asked
    for; `prompt_logprobs` are of the prompt's next tokens, from its second on or the first that was asked for, and come
    before or with the first token of the answer.
    """

    request_id: str
    token_ids: list[int]
    finish_reason: FinishReason | None = None
    error: str | None = None
    cached_tokens: int = 0
    pooled: bytes = b""
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    code: str = ""
    times: RequestTimes | None = None  # with the first token, or the vector
    prompt_tokens: int = 0


class EngineInfo(msgspec.Struct, frozen=True):
    """What an engine turned out to be once the model is loaded."""

    architecture: str
    base_digest: str  # SHA-256 hex over the model's configuration and weights
    device: str
    dtype: str
    attention: str
    kernels: str
    vocab_size: int  # width of the logits: every token id must be below it, and what an adapter adds
    max_model_len: int  # prompt + generated tokens of one request
    eos_token_ids: tuple[int, ...]
    block_size: int
    num_blocks: int
    max_batch_tokens: int
    max_running: int
    adapter_memory_bytes: int
    weight_bytes: int
    shapes: BaseShapes  # what adapters may change
    host_adapter_memory_bytes: int = 0
    rope: str = "static"  # how length-dependent position embeddings were fixed
    prefix_cache: bool = True
    speculate: int = 0  # most drafted tokens of a sequence in a step
    draft_rows: int = 0  # rows of a step up to which drafts fill it
    decoder: str = "none"  # whose forward computes: "fused" or "transformers"
    weights: str = ""  # how the linear modules' weights are held, and what rounding them lost
    threads: int = 0  # on a CPU
    pad_token_id: int | None = None  # which classifiers look past at the end of a text


class EngineStats(msgspec.Struct, frozen=True):
    """A snapshot after a step. Counters only grow; gauges say how things stand."""

    running: int = 0
    waiting: int = 0
    blocks_total: int = 0
    blocks_free: int = 0
    steps: int = 0
    preemptions: int = 0
    prefix_queries: int = 0  # prompt tokens looked up in the prefix cache
    prefix_hits: int = 0  # prompt tokens found there
    prefix_evictions: int | None = 0  # blocks; None: it isn't known
    blocks_cached: int | None = 0  # that can be found by their content, in use or free; None: it isn't known
    prompt_tokens: int = 0  # computed, each once however often
    generated_tokens: int = 0
    drafted_tokens: int = 0  # guessed and checked
    accepted_tokens: int = 0  # of those, right
    adapter_bytes: int = 0  # of device memory
    adapter_loads: int = 0  # into device memory
    adapter_loads_from_host: int = 0  # those of them whose weights were in host memory, from an earlier use
    adapter_evictions: int = 0
    host_adapter_bytes: int = 0  # of host memory, beside what a CPU computes on
    host_adapters: tuple[str, ...] = ()  # digests in host memory
    resident_adapters: tuple[str, ...] = ()  # digests in device memory
    running_adapters: tuple[str, ...] = ()  # digests of running requests
    waiting_adapters: tuple[str, ...] = ()  # digests waiting requests ask for and that are not resident
    restarts: int = 0  # of the engine's process; all other counters begin anew with each
    pid: int = 0  # of that process; 0 where it has none of its own
    figures: EngineFigures = EngineFigures()


class EngineConfig(msgspec.Struct, frozen=True):
    """What an engine is told at start. Zero or "auto" lets it choose; `EngineInfo` says what it chose."""

    model_path: str  # a directory: config.json, *.safetensors, tokenizer files
    base_digest: str = ""  # SHA-256 hex over configuration and weights; the client computes it when empty
    device: str = "auto"  # "cpu", "cuda", "cuda:1"
    dtype: str = "auto"  # fp32 on CPU, bf16 on CUDA
    max_model_len: int = 0
    block_size: int = 16
    kv_memory_bytes: int = 0
    adapter_memory_bytes: int = 0
    host_adapter_memory_bytes: int = 0
    max_batch_tokens: int = 0
    max_running: int = 64
    threads: int = 0
    speculate: int = 0  # most tokens drafted for a sequence in a step; 0: none
    kernels: Literal["auto", "torch", "triton"] = "auto"
    weights: Literal["auto", "fp32", "bf16", "int8", "int4"] = "auto"  # how linear modules' weights are held
    quantization: str = "auto"  # "auto": as the checkpoint is; else by which library the base is quantised as it loads
    graphs: Literal["auto", "on", "off"] = "auto"  # decoding steps as CUDA graphs; "on" plays them back on a CPU too
    overlap: Literal["auto", "on", "off"] = "auto"  # whether a step is launched before the last one's tokens are read
    prefix_cache: bool = True  # keep what was computed for prompts and answers, for requests that begin alike
    decoder: Literal["auto", "transformers"] = "auto"
    deterministic: bool = False  # logits of a request are the same bits in any company; refused where they can't be
    log_level: str = "info"
    log_format: Literal["text", "json"] = "text"
    hang_s: float = 4.0  # the least that is taken for a hang: seconds without a sign of life, or in an unusual step
    restarts: int = 5  # of an engine that was lost, within ten minutes; 0: none, its end is the server's


class EngineError(Exception):
    """Base of everything an engine raises on purpose."""


class ModelRefused(EngineError):
    """The model can't be served exactly; the message names it, the check that failed and the remedy."""


class AdapterLoadFailed(EngineError):
    """An adapter's files could not be turned into device weights; the message says why, `code` in one word."""

    def __init__(self, message: str, code: str = "activation_failed") -> None:
        super().__init__(message)
        self.code = code


class RequestRefused(EngineError):
    """The request can never run on this engine (too long, or an id already in use)."""


class EngineDead(EngineError):
    """The engine stopped for good; every open request failed with this and no new one is taken."""


class EngineRestarting(EngineError):
    """The engine was lost with every open request and is being started anew; `retry_after` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(
            f"The engine is being restarted. Please retry in {retry_after} second{'s' if retry_after > 1 else ''}."
        )
        self.retry_after = retry_after


class Engine(Protocol):
    """What is asked of an engine. One that comes back after a loss raises EngineRestarting where EngineDead is said.

    `generate` ends with a delta that carries `finish_reason`; closing it early aborts.
    """

    async def start(self) -> EngineInfo:
        """Load the model. Raises ModelRefused or EngineDead."""
        ...

    async def stop(self) -> None:
        """Free everything; open requests end with EngineDead."""
        ...

    def kill(self) -> None:
        """End what computes at once, without waiting for anything; `stop` still has to be called."""
        ...

    async def died(self) -> str:
        """Wait for the engine's end, whoever caused it, and say why."""
        ...

    def generate(self, request: GenerationRequest, read: PromptRead | None = None) -> AsyncIterator[TokenDelta]:
        """Stream one request. Raises RequestRefused before the first delta, EngineDead at any time.

        Ending it before its answer begins writes to `read`, where one is given: closing waits for that, but not long.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """Drop a request; its memory is free within a step. Unknown ids are ignored.

        Whoever iterates it gets what came before, and a last delta with the reason "abort".
        """
        ...

    async def load_adapter(self, adapter: AdapterRef, asker: Asker = NOBODY) -> AdapterEffect | None:
        """Read, verify and pack a version, so that its first request needn't wait. Raises AdapterLoadFailed.

        It comes to device memory where there is room, also among what its asker's versions may take.

        Returns what it does to the base where the engine can tell.
        """
        ...

    async def unload_adapter(self, digest: str) -> None:
        """Forget a version once no request uses it. Unknown digests are ignored."""
        ...

    async def keep_adapters(self, digests: tuple[str, ...]) -> None:
        """From now on exactly these stay in device memory once they are there, as far as the budget goes."""
        ...

    async def stats(self) -> EngineStats:
        """The newest snapshot, from the step loop: callers bound how long they wait for it. Raises EngineDead."""
        ...

    async def ready(self) -> bool:
        """Whether it gets on: its loop answers, or is in a step that takes no longer than such steps do.

        Known within 1.5 s, however many requests wait. Raises EngineDead.
        """
        ...
