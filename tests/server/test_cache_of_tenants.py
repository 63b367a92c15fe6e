"""A server with real keys and a tiny model: nobody's prompt is found in what another's left in the cache.

Of equal prompts of tenants, adapters, versions and salts each is computed whole, and then found by who sends it again.
LIVERY_CACHE_PAIRS sets how many pairs of requests are drawn.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from peft import LoraConfig

from api.tenants import files
from engine.oracle import save_adapter
from livery.data_folder import DataFolder
from livery.tenancy import TenantStore
from livery_adapters.manifest import read_manifest
from server.running import SMALL, livery_serve, tiny_model
from sizes import SEED, wished

BASE = ""
PAIRS = wished("LIVERY_CACHE_PAIRS", 30)
TENANTS = ("acme", "bob", "ac")
BLOCK = 16
PROMPT = list(range(1000, 1040))  # two blocks of 16 and a half
FOUND = 32


@dataclass(frozen=True)
class Served:
    """A server, the key of each tenant, and the folder of adapters that aren't served yet."""

    url: str
    keys: dict[str, str]
    adapters: Path

    def headers(self, tenant: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[tenant]}"}

    def upload(self, tenant: str, name: str, adapter: str) -> None:
        url = f"{self.url}/v1/adapters/{name}/versions"
        answer = httpx.post(url, files=files(self.adapters / adapter), headers=self.headers(tenant), timeout=120)
        assert answer.status_code == 200, answer.text

    def cached(self, tenant: str, model: str, prompt: list[int] = PROMPT, **more: object) -> int:
        """How many of the prompt's tokens were found computed."""
        body = {"model": model, "prompt": prompt, "max_tokens": 1, **more}
        answer = httpx.post(f"{self.url}/v1/completions", json=body, headers=self.headers(tenant), timeout=120)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The operator's `pirate`, which all may use, and a key of an owner of each tenant."""
    folder = tmp_path_factory.mktemp("cache")
    data = DataFolder(folder / "data")
    data.make()
    store = TenantStore.open(data.tenants)
    keys = {tenant: store.create_key(tenant, role="owner", occupied=lambda _: None)[1] for tenant in TENANTS}
    store.close()
    model, lora = tiny_model(folder / "tiny"), LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    for seed, name in enumerate(("served/pirate", "sql", "json")):
        save_adapter(model, folder / name, seed, lora)
    with livery_serve(model, folder / "served", folder, "--threads", "1", *SMALL) as server:
        yield Served(server.url, keys, folder)


def test_a_prompt_is_found_by_those_alone_who_asked_it(served: Served) -> None:
    served.upload("acme", "mine", "sql")
    asked: list[tuple[str, str, dict[str, object]]] = [
        ("acme", BASE, {}),
        ("bob", BASE, {}),  # another tenant
        ("acme", "pirate", {}),  # another adapter
        ("bob", "pirate", {}),
        ("acme", "mine", {}),
        ("acme", "pirate", {"cache_salt": "one"}),
        ("acme", "pirate", {"cache_salt": "other"}),
        ("bob", "pirate", {"cache_salt": "one"}),
    ]
    assert [served.cached(tenant, model, **more) for tenant, model, more in asked] == [0] * len(asked)
    assert [served.cached(tenant, model, **more) for tenant, model, more in asked] == [FOUND] * len(asked)
    served.upload("acme", "mine", "json")  # another version of the same name
    assert [served.cached("acme", "mine") for _ in range(2)] == [0, FOUND]


class Asked(NamedTuple):
    """One request. `salt` None: none is sent. `changed`: the first place of the prompt that another token is at."""

    tenant: str
    model: str
    salt: str | None = None
    changed: int = len(PROMPT)


def test_no_block_is_found_across_any_field_that_differs(served: Served) -> None:
    """Pairs of requests of which the second finds what both have in common, or nothing where the two differ."""
    for tenant in TENANTS:
        served.upload(tenant, "mine", "json" if tenant == "bob" else "sql")
        served.upload(tenant, "copy", "served/pirate")
    pirate, sql, json = (read_manifest(served.adapters / name).digest for name in ("served/pirate", "sql", "json"))
    models = {
        BASE: "",
        "pirate": pirate,
        f"pirate@{pirate[:12]}": pirate,
        "1*pirate": pirate,
        "copy": pirate,  # the same bytes under a name of one's own
        "0.5*pirate": "half of it",
        "mine": sql,
    }

    def meant(one: Asked) -> tuple[str, str, str | None]:
        """All that a block depends on beside its tokens."""
        digest = json if (one.tenant, one.model) == ("bob", "mine") else models[one.model]
        return one.tenant, digest, one.salt

    seed = 3 + SEED
    dice = random.Random(seed)
    salts = [None, None, "acme", "pirate", pirate, "me-x", "-x"]  # a tenant's name, a model's, its digest
    drawn = [
        (Asked("ac", BASE, "me-x"), Asked("acme", BASE, "-x")),  # no part of a name slides into the salt
        (Asked("acme", BASE, pirate), Asked("acme", "pirate")),
        (Asked("acme", "pirate", "pirate"), Asked("acme", "pirate")),
        (Asked("acme", "copy"), Asked("acme", "pirate")),
    ]
    while len(drawn) < PAIRS:
        one = Asked(dice.choice(TENANTS), dice.choice(list(models)), dice.choice(salts))
        other = {
            "tenant": dice.choice(TENANTS),
            "model": dice.choice(list(models)),
            "salt": dice.choice(salts),
            "changed": dice.choice([0, 15, 16, 31, 32, 39]),
        }
        changed = dice.sample(sorted(other), dice.choice([0, 1, 1, 2]))
        drawn.append((one, one._replace(**{name: other[name] for name in changed})))
    found = Counter[int]()
    for number, (one, other) in enumerate(drawn):
        prompts = [[2000 + number, *PROMPT[1:]] for _ in "ab"]  # which no other pair begins with
        if other.changed < len(PROMPT):
            prompts[1][other.changed] = 3000 + number
        common = BLOCK * (min(other.changed, len(PROMPT) - 1) // BLOCK) if meant(one) == meant(other) else 0
        cached = [
            served.cached(asked.tenant, asked.model, prompt, **({"cache_salt": asked.salt} if asked.salt else {}))
            for asked, prompt in zip((one, other), prompts, strict=True)
        ]
        assert cached == [0, common], f"number {number} (seed {seed}): {one}, then {other}"
        found[common] += 1
    print(f"seed {seed}, {len(drawn)} pairs by the tokens that the second one found: {dict(found)}")
    assert found[0] > PAIRS / 4 and found[FOUND] > PAIRS / 8


def test_a_prompt_that_is_scored_for_several_answers_is_scored_as_for_one(served: Served) -> None:
    """The first answer's run scores it; the others find its blocks, and are told the same."""

    def asked(**more: object) -> list[dict[str, Any]]:
        body = {"model": "pirate", "prompt": PROMPT, "max_tokens": 3, "echo": True, "logprobs": 2, "temperature": 0}
        headers = served.headers("bob")
        answer = httpx.post(f"{served.url}/v1/completions", json=body | more, headers=headers, timeout=120)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["prompt_tokens"] == len(PROMPT)
        return [choice["logprobs"] for choice in answer.json()["choices"]]

    (alone,) = asked(cache_salt="alone")
    for told in asked(cache_salt="together", n=4):
        assert told["tokens"] == alone["tokens"] and told["token_logprobs"][0] is None
        assert told["token_logprobs"][1:] == pytest.approx(alone["token_logprobs"][1:], abs=1e-3)
