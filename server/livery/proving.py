"""Proof that an adapter can be applied: the engine converts it and runs a few tokens under it.

Bad numbers show here, before any name points to them, and hurt nobody: they fail this one request.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress

from livery.engine.base import (
    CANARY,
    AdapterLoadFailed,
    AdapterPart,
    AdapterRef,
    Asker,
    Engine,
    EngineError,
    EngineInfo,
    GenerationRequest,
    RequestRefused,
    SamplingParams,
)
from livery.engine.codes import ADAPTER_TOO_LARGE
from livery_adapters.effect import AdapterEffect
from livery_adapters.prover import Candidate
from livery_adapters.refusal import AdapterRefused

CANARY_TOKENS = 5


def reference(candidate: Candidate) -> AdapterRef:
    """A version as the engine is asked for it."""
    part = AdapterPart(
        candidate.weights,
        str(candidate.path),
        approximate=candidate.approximate,
        verified=candidate.verified,
        added_tokens=candidate.added_tokens,
    )
    return AdapterRef(candidate.digest, (part,))


class EngineProver:
    """Asks the engine that will serve it; `hold` and `release` keep it from being swept out meanwhile."""

    def __init__(
        self,
        engine: Engine,
        info: EngineInfo,
        hold: Callable[[AdapterRef], None],
        release: Callable[[str], None],
        asker_of: Callable[[str], Asker],
    ) -> None:
        """`asker_of` says how the engine takes a tenant: what is proven counts among what its owner has there."""
        self._asker_of = asker_of
        self._engine = engine
        self._hold = hold
        self._release = release
        step = max(1, info.vocab_size // CANARY_TOKENS)
        self._canary = [token for token in range(1, info.vocab_size, step)][:CANARY_TOKENS]
        self._vocab_size = info.vocab_size

    async def prove(self, candidate: Candidate) -> AdapterEffect | None:
        """Load it and take one token. Raises AdapterRefused."""
        ref = reference(candidate)
        self._hold(ref)
        with ExitStack() as undo:
            undo.callback(self._release, ref.digest)
            try:
                effect = await self._engine.load_adapter(ref, self._asker_of(candidate.owner))
                await self._run(ref, candidate)
            except AdapterLoadFailed as failed:
                raise AdapterRefused(failed.code, str(failed)) from failed
            except RequestRefused as refused:
                raise AdapterRefused(
                    "canary_failed", f"a first run under this adapter is not possible: {refused}"
                ) from refused
            undo.pop_all()
            return effect

    async def stored(self, candidate: Candidate) -> None:
        """Whoever reads it again, as after a restart of the engine, finds it there; now it only learns the place."""
        with suppress(EngineError):  # a request that comes for it says the same
            await self._engine.load_adapter(reference(candidate), self._asker_of(candidate.owner))

    async def forget(self, digest: str) -> None:
        self._release(digest)

    async def _run(self, ref: AdapterRef, candidate: Candidate) -> None:
        """One greedy token, all of it computed now, after the last of the adapter's own where it has some.

        An activated adapter is active from the first one."""
        own = range(self._vocab_size, self._vocab_size + candidate.added_tokens)
        prompt = [*candidate.invocation, *self._canary, *own[-1:]]
        name = f"{CANARY}{uuid.uuid4().hex}"
        asker = self._asker_of(candidate.owner)
        request = GenerationRequest(
            name,
            prompt,
            SamplingParams(max_tokens=1, temperature=0.0),
            ref,
            tenant=asker.tenant,
            cache_salt=name,
            weight=asker.weight,
            resident_bytes=asker.limit,
        )
        async for delta in self._engine.generate(request):
            if delta.finish_reason == "error" and delta.code == ADAPTER_TOO_LARGE:
                raise AdapterRefused(
                    delta.code, delta.error or "the adapter is more than its tenant may have in memory"
                )
            if delta.finish_reason == "error":
                raise AdapterRefused(
                    "canary_failed",
                    f"a first run of {len(prompt)} tokens under this adapter failed: {delta.error}. Its weights are "
                    "finite, but what the model computes with them isn't; train with a lower learning rate or scale",
                )
