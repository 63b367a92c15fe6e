"""Keys of blocks: everything a block's content depends on changes them, and nothing else does.

LIVERY_KEY_PAIRS sets how many pairs of requests are drawn.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from livery.engine.base import AdapterPart, AdapterRef, GenerationRequest, SamplingParams
from livery.engine.prefix_keys import KeyChain, KVIdentity
from sizes import wished

PAIRS = wished("LIVERY_KEY_PAIRS", 1_000)
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


# -- pairs that are drawn ---------------------------------------------------------------------------

# Few words, which are names of tenants, salts and digests at once, and pieces of each other: what slides from one field
# into the next, or is taken for another, would be found.
WORDS = ["", "a", "ab", "abc", "b", "bc", "c", "d1", "a~1.0"]
words = st.sampled_from(WORDS)


class Drawn(NamedTuple):
    """All that is drawn of a request and of its engine. `parts` are an adapter's weights, none for the base's."""

    base: str
    rope: str
    dtype: str
    block_size: int
    tenant: str
    account: str
    salt: str
    digest: str
    parts: tuple[float, ...]
    start: int
    tokens: tuple[int, ...]

    def keys(self) -> list[bytes]:
        parts = tuple(AdapterPart(self.digest, f"/{number}", weight) for number, weight in enumerate(self.parts))
        adapter = AdapterRef(self.digest, parts) if parts else None
        asked = GenerationRequest(
            *("r", list(self.tokens), SamplingParams(1), adapter, self.start, self.tenant, self.salt),
            account=self.account,
        )
        chain = KeyChain(KVIdentity(self.base, self.rope, self.dtype, self.block_size), asked)
        return [chain.key(block, asked.prompt_token_ids) for block in range(len(self.tokens) // self.block_size)]

    def content(self, block: int) -> tuple[object, ...]:
        """All that the content of a block depends on."""
        adapted = self.parts and block >= self.start // self.block_size
        adapter = (self.digest, self.parts, self.start) if adapted else None
        whose = (*self[:4], self.tenant, self.account, self.salt)
        return (*whose, adapter, self.tokens[: (block + 1) * self.block_size])


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "base": words,
    "rope": words,
    "dtype": words,
    "block_size": st.sampled_from([1, 2, 3]),
    "tenant": words,
    "account": words,
    "salt": words,
    "digest": words,
    "parts": st.sampled_from([(), (1.0,), (0.5,), (1.0, 0.5), (0.5, 1.0)]),
    "start": st.integers(0, 5),
    "tokens": st.lists(st.sampled_from([1, 2, 256, 257, 65_536]), min_size=3, max_size=6).map(tuple),
}


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Drawn, Drawn]:
    """Two that differ in at most two of the fields: most pairs drawn apart would differ in all."""
    one = Drawn(**{name: draw(strategy) for name, strategy in FIELDS.items()})
    changed = draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=2))
    return one, one._replace(**{name: draw(FIELDS[name]) for name in changed})


PLAIN = Drawn("", "", "", 1, "", "", "", "", (), 0, (1, 2, 3))


@given(pair=pairs())
@example(pair=(PLAIN._replace(account="accounta"), PLAIN._replace(tenant="account", account="a")))  # a field's name
@example(pair=(PLAIN._replace(tenant="a", salt="bc"), PLAIN._replace(tenant="ab", salt="c")))
@example(pair=(PLAIN._replace(tenant="a"), PLAIN._replace(salt="a")))
@example(pair=(PLAIN._replace(digest="d1", parts=(1.0,)), PLAIN._replace(digest="d1", salt="d1")))
@settings(max_examples=PAIRS, deadline=None)
def keys_are_equal_where_contents_are(found: Counter[str], pair: tuple[Drawn, Drawn]) -> None:
    one, other = pair
    for place, key in enumerate(one.keys()):
        for at, its in enumerate(other.keys()):
            same = one.content(place) == other.content(at)
            assert (key == its) is same, f"block {place} of {one} and block {at} of {other}"
            found["equal" if same else "different"] += 1
    found["pairs"] += 1


def test_keys_are_equal_where_and_only_where_all_fields_are() -> None:
    found = Counter[str]()
    keys_are_equal_where_contents_are(found=found)
    print(f"{dict(found)} blocks; the seed is Hypothesis's own")
    assert found["pairs"] >= PAIRS and found["equal"] > PAIRS / 4 and found["different"] > PAIRS
