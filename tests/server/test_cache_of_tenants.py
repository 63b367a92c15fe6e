"""A server with real keys and a tiny model: nobody's prompt is found in what another's left in the cache.

Of equal prompts of tenants, adapters, versions and salts each is computed whole, and then found by who sends it again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from peft import LoraConfig

from api.tenants import files
from engine.oracle import save_adapter
from livery.data_folder import DataFolder
from livery.tenancy import TenantStore
from server.running import SMALL, livery_serve, tiny_model

BASE = ""
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

    def cached(self, tenant: str, model: str, **more: object) -> int:
        """How many of the prompt's tokens were found computed."""
        body = {"model": model, "prompt": PROMPT, "max_tokens": 1, **more}
        answer = httpx.post(f"{self.url}/v1/completions", json=body, headers=self.headers(tenant), timeout=120)
        assert answer.status_code == 200, answer.text
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The operator's `pirate`, which all may use, and a key of an owner of each of two tenants."""
    folder = tmp_path_factory.mktemp("cache")
    data = DataFolder(folder / "data")
    data.make()
    store = TenantStore.open(data.tenants)
    keys = {tenant: store.create_key(tenant, role="owner", occupied=lambda _: None)[1] for tenant in ("acme", "bob")}
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
