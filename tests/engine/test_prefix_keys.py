"""Keys of blocks: everything a block's content depends on changes them, and nothing else does."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from livery.engine.base import AdapterPart, AdapterRef, GenerationRequest, SamplingParams
from livery.engine.prefix_keys import KeyChain, KVIdentity

IDENTITY = KVIdentity("ba5e", "static", "float32", 4)
TOKENS = list(range(50, 62))
PART = AdapterPart("d1", "/x")
ADAPTER = AdapterRef("d1", (PART,))
REQUEST = GenerationRequest("r", TOKENS, SamplingParams(1), ADAPTER, 0, "tenant", "salt")


def keys(request: GenerationRequest = REQUEST, identity: KVIdentity = IDENTITY, **changes: Any) -> list[bytes]:
    request = msgspec.structs.replace(request, **changes)
    chain = KeyChain(identity, request)
    return [chain.key(block, request.prompt_token_ids) for block in range(len(TOKENS) // identity.block_size)]


@pytest.mark.parametrize(
    "identity",
    [
        KVIdentity("other", "static", "float32", 4),
        KVIdentity("ba5e", "fixed@64", "float32", 4),
        KVIdentity("ba5e", "static", "bfloat16", 4),
        KVIdentity("ba5e", "static", "float32", 2),
    ],
)
def test_each_of_the_engines_choices_is_in_the_key(identity: KVIdentity) -> None:
    assert not set(keys()) & set(keys(identity=identity))


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "other"},
        {"account": "tenant~1.0"},
        {"tenant": "", "cache_salt": "tenantsalt"},  # nothing slides from one field into the next
        {"tenant": "tenantsalt", "cache_salt": ""},
        {"cache_salt": ""},
        {"adapter": None},
        {"adapter": AdapterRef("d2", (PART,))},
        {"adapter": AdapterRef("d1", (AdapterPart("d1", "/x", 0.5),))},
        {"adapter_start": 1},
        {"prompt_token_ids": [0, *TOKENS[1:]]},
        {"prompt_token_ids": [256 + 50, *TOKENS[1:]]},  # more than one byte of a token counts
    ],
)
def test_each_of_the_requests_facts_is_in_every_key(change: dict[str, Any]) -> None:
    assert not set(keys()) & set(keys(**change))


def test_names_and_places_are_not() -> None:
    moved = AdapterRef("d1", (AdapterPart("d1", "/elsewhere", verified=True),))
    assert keys() == keys(request_id="other", adapter=moved, sampling=SamplingParams(9, seed=1))


def test_a_block_is_keyed_by_all_before_it() -> None:
    changed = keys(prompt_token_ids=[*TOKENS[:4], 0, *TOKENS[5:]])
    assert [a == b for a, b in zip(keys(), changed, strict=True)] == [True, False, False]
    twice = keys(prompt_token_ids=[7, 7, 7, 7] * 3)
    assert len(set(twice)) == 3, "equal tokens at another place are another block"


@pytest.mark.parametrize("start", range(14))
def test_what_ends_before_an_activation_is_the_bases(start: int) -> None:
    base, activated = keys(adapter=None), keys(adapter_start=start)
    shared = start // 4
    assert activated[:shared] == base[:shared]
    assert not set(activated[shared:]) & set(base)
    assert not set(activated[shared:]) & set(keys(adapter_start=start + 1)[shared:]) or start >= 12


def test_keys_are_the_same_however_they_are_asked_for() -> None:
    chain = KeyChain(IDENTITY, REQUEST)
    assert chain.key(2, TOKENS) == keys()[2]
    assert chain.key(0, TOKENS) == keys()[0]
    grown = KeyChain(IDENTITY, REQUEST)
    assert [grown.key(block, TOKENS[: 4 * block + 4]) for block in range(3)] == keys(), "as a sequence grows"
