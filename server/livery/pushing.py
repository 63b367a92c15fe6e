"""New weights for an adapter that is served: its file of tensors alone, under the configuration of the version before.

    answer = await pushed(management, "acme/policy", Weights(pieces, nbytes), AddOptions(keep=2), shown="policy")

When it returns, the version is stored, checked, was run once by the engine, which has it in memory, and every worker of
this server knows it. What runs on the version before finishes there, or (`running="abort"`) ends with what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

from livery.adapter_views import Json
from livery.adding import AddOptions
from livery.management import AdapterManagement
from livery.superseding import Superseded
from livery_adapters.identity import DIGEST_SHOWN, fingerprint
from livery_adapters.incoming import Incoming
from livery_adapters.library import Fill
from livery_adapters.refusal import AdapterRefused
from livery_adapters.registry import NamedVersion, NoActiveVersion, UnknownAdapter, UnknownVersion, reader_of
from livery_adapters.store import Hold
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME, open_regular

GATHERED = 1 << 20  # bytes that are written at once
TRIES = 3  # to hold the files of a version that others replace at the same time
# Refusals that the configuration of the version before may be the reason for.
OF_THE_CONFIG = frozenset(
    {
        "missing_half",
        "missing_tensor",
        "no_matching_module",
        "rank_mismatch",
        "unknown_tensor",
        "untargeted_tensor",
        "wrong_base",
        "wrong_shape",
    }
)


@dataclass(frozen=True, slots=True)
class Weights:
    """The bytes of an adapter_model.safetensors, in pieces; `size` is their announced number, None if nobody said."""

    pieces: AsyncIterator[bytes]
    size: int | None = None


async def pushed(
    management: AdapterManagement, name: str, body: Weights | Fill, options: AddOptions, *, shown: str
) -> Json:
    """Take a version in and tell of it under "pushed"; `shown` is what the caller calls the adapter.

    Weights alone have the configuration, profile and approximation of the active version, a Fill its own. Raises as
    `AdapterManagement.take`, and NoActiveVersion, ProfileChanged.
    """
    if not isinstance(body, Weights):
        record, digest = await management.taken(name, body, "upload", options)
    else:
        active, hold = await _active(management, name, options.owner)
        facts = active.facts
        options = replace(options, follows=facts, approximate=options.approximate or facts.approximate)
        fill = from_weights(management.library.store.path(facts.weights), body)
        try:
            record, digest = await management.taken(name, fill, "upload", options)
        except AdapterRefused as refused:
            if refused.code not in OF_THE_CONFIG:
                raise
            raise AdapterRefused(
                refused.code,
                f"{refused.message}. The configuration is that of version {active.number}, which is active: weights of "
                "another shape come with their own (multipart/form-data with adapter_config.json)",
            ) from refused
        finally:
            hold.release()
    if options.running == "abort" and record.active is not None:
        await management.live.supersede(
            Superseded(name, record.active.facts.digest, record.generation, options.account)
        )
        options.laps.lap("abort")
    told = await management.told(record, whole=not isinstance(body, Weights))
    serves = record.active is not None and record.active.facts.digest == digest
    told["pushed"] = {
        "version": record.active.number if serves and record.active else await _number(management, name, digest),
        "digest": digest,
        "active": serves,
        "model": f"{shown}@{digest[:DIGEST_SHOWN]}",
        "system_fingerprint": fingerprint(management.library.base.digest, digest),
        "seconds": {stage: round(seconds, 6) for stage, seconds in options.laps.seconds.items()},
    }
    return told


async def _number(management: AdapterManagement, name: str, digest: str) -> int | None:
    """Of a version that isn't active; None where `keep` dropped it at once, as an old one that came again."""
    try:
        return (await asyncio.to_thread(management.library.registry.version, name, digest)).number
    except UnknownVersion:
        return None


def from_weights(directory: Path, weights: Weights) -> Fill:
    """Writes pieces of the weights as they arrive, beside the configuration that lies in a directory."""

    def begin(incoming: Incoming) -> None:
        incoming.check_size(WEIGHTS_NAME, weights.size or 0)
        with open_regular(directory, CONFIG_NAME) as stream:
            incoming.read(CONFIG_NAME, stream)
        incoming.begin(WEIGHTS_NAME, weights.size)

    async def fill(incoming: Incoming) -> str:
        await asyncio.to_thread(begin, incoming)
        async for piece in _gathered(weights.pieces):
            await asyncio.to_thread(incoming.write, WEIGHTS_NAME, piece)
        return "upload"

    return fill


async def _gathered(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same in larger pieces: a socket's are small, and each goes to a thread."""
    waiting = bytearray()
    async for piece in pieces:
        waiting += piece
        if len(waiting) >= GATHERED:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)


async def _active(management: AdapterManagement, name: str, owner: str | None) -> tuple[NamedVersion, Hold]:
    """The active version, its files held. Raises UnknownAdapter, NoActiveVersion, AdapterRefused."""
    library = management.library
    for _ in range(TRIES):
        try:
            record = await asyncio.to_thread(library.registry.get, name, reader=reader_of(owner))
        except UnknownAdapter:
            raise UnknownAdapter(
                name,
                "weights alone follow a version that is there; send adapter_config.json along (multipart/form-data)",
            ) from None
        if record.active is None or record.active.facts.weightless:
            break
        await library.bring(record.active.facts.weights, record.owner)
        try:
            return record.active, await asyncio.to_thread(library.store.hold, record.active.facts.weights)
        except FileNotFoundError:  # replaced and thrown out in between
            continue
    raise NoActiveVersion(name)
