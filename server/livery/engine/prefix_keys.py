"""The keys of KV blocks: equal keys mean equal content.

    tokens   [ 0 … 15 ]          [ 16 … 31 ]        [ 32 … 40
    keys     k0 = H(seed, ids)   k1 = H(k0, ids)    none: the block isn't full

A key says everything that a block's content depends on: the engine's own choices, whose request it is, the adapter
as it was converted, its weights in a sum, and all tokens up to the block's end. Nothing that can come to mean
something else (a name, a path, a slot) is part of one. Chained keys of blocks: vLLM's automatic prefix caching,
after Kwon et al., "Efficient Memory Management for LLM Serving with PagedAttention", 2023.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from livery.engine.base import EngineInfo, GenerationRequest

FORMAT = "livery kv 2"


@dataclass(frozen=True, slots=True)
class KVIdentity:
    """What all blocks of one engine have in common. `block_size` in tokens."""

    base_digest: str
    rope: str
    dtype: str
    block_size: int


def kv_identity(info: EngineInfo) -> KVIdentity | None:
    """What all blocks of this engine have in common; None where none are to be shared."""
    return KVIdentity(info.base_digest, info.rope, info.dtype, info.block_size) if info.prefix_cache else None


class KeyChain:
    """The keys of one sequence's full blocks, each computed once, when it is asked for.

    Blocks that end at or before `adapter_start` were computed by the base alone, so they are keyed as the base's.
    """

    __slots__ = ("_adapted", "_first_adapted", "_keys", "_plain", "_tokens")

    def __init__(self, identity: KVIdentity, request: GenerationRequest) -> None:
        self._tokens = struct.Struct(f"<{identity.block_size}I")
        self._plain = self._adapted = _seed(identity, request, adapted=False)
        self._first_adapted = 0
        if request.adapter is not None:
            self._adapted = _seed(identity, request, adapted=True)
            self._first_adapted = request.adapter_start // identity.block_size
        self._keys: list[bytes] = []

    def key(self, block: int, tokens: list[int]) -> bytes:
        """The key of a full block, by its place in the sequence: 32 bytes."""
        keys, size = self._keys, self._tokens.size // 4
        while len(keys) <= block:
            first = len(keys) * size
            packed = self._tokens.pack(*tokens[first : first + size])
            keys.append(_digest("block", self._previous(len(keys)), packed))
        return keys[block]

    def _previous(self, block: int) -> bytes:
        if block == 0:
            return self._plain if self._first_adapted else self._adapted
        if block == self._first_adapted:
            return _digest("activation", self._keys[block - 1], self._adapted)
        return self._keys[block - 1]


def _seed(identity: KVIdentity, request: GenerationRequest, *, adapted: bool) -> bytes:
    """What stands before a sequence's first block: everything its blocks depend on beside the tokens."""
    adapter = request.adapter if adapted else None
    fields = {
        "base": identity.base_digest,
        "rope": identity.rope,
        "dtype": identity.dtype,
        "block size": str(identity.block_size),
        "tenant": request.tenant,
        "account": request.account,
        "adapter": adapter.digest if adapter else "",
        "weights": ",".join(part.weight.hex() for part in adapter.parts) if adapter else "",
        "start": str(request.adapter_start) if adapter else "",
        "salt": request.cache_salt,
    }
    return _digest("seed", *(text.encode() for field in fields.items() for text in field))


def _digest(tag: str, *fields: bytes) -> bytes:
    """SHA-256 over the format, a tag and the fields, each after its length, so that no two lists look alike."""
    text = [FORMAT.encode(), tag.encode(), *fields]
    return hashlib.sha256(b"".join(len(field).to_bytes(8, "big") + field for field in text)).digest()
