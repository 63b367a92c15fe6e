"""Tenants' adapters by command against a server process: lists, shares, and the folder that the server follows."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.peft_files import make_adapter
from cli.conftest import Done, Livery
from cli.processes import serving, url_in
from livery.data_folder import DataFolder
from livery.tenancy import TenantStore
from livery.tenancy.records import Role

CEILING_S = 120


@dataclass(frozen=True)
class House:
    """A server whose folder holds `public`, `acme/pirate` and `nobody/inner`, and keys by whose they are."""

    url: str
    served: Path
    pool: Path
    keys: dict[str, str]

    def models(self, who: str) -> list[str]:
        answer = httpx.get(f"{self.url}/v1/models", headers={"authorization": f"Bearer {self.keys[who]}"}, timeout=30)
        answer.raise_for_status()
        return [model["id"] for model in answer.json()["data"][1:]]  # after the base

    def until_models(self, who: str, names: list[str]) -> None:
        """The folder is looked at every other second."""
        end = time.monotonic() + CEILING_S
        while (seen := self.models(who)) != names:
            assert time.monotonic() < end, seen
            time.sleep(0.1)

    def asks(self, who: str, model: str) -> int:
        body = {"model": model, "prompt": [1000], "max_tokens": 1}
        headers = {"authorization": f"Bearer {self.keys[who]}"}
        return httpx.post(f"{self.url}/v1/completions", json=body, headers=headers, timeout=30).status_code


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    root = tmp_path_factory.mktemp("house")
    served, data = root / "served", root / "data"
    for seed, name in enumerate(("public", "acme/pirate", "nobody/inner")):
        make_adapter(served / name, seed=seed)
    make_adapter(root / "pool", seed=7)

    (folder := DataFolder(data)).make()
    with closing(TenantStore.open(folder.tenants_url(None))) as store:

        def key(tenant: str, role: Role) -> str:
            return store.create_key(tenant, role=role, occupied=lambda _: None)[1]

        keys = {"acme": key("acme", "owner"), "zeta": key("zeta", "user"), "operator": key("default", "admin")}
    with serving(served, data) as (_, printed):
        yield House(url_in(printed), served, root / "pool", keys)


@pytest.fixture
def ask(house: House, livery: Livery) -> Any:
    def call(who: str, *arguments: str) -> Done:
        return livery("adapters", *arguments, "--url", house.url, "--key", house.keys[who], "--json")

    return call


def names(done: Done) -> list[str]:
    return [one["name"] for one in done.json()["data"]]


def test_a_list_is_one_tenants_where_the_operator_says_so(house: House, ask: Any) -> None:
    assert names(ask("operator", "ls")) == ["acme/pirate", "public"], "who is no tenant has no folder of its own"
    assert names(ask("operator", "ls", "--tenant", "acme")) == ["acme/pirate"]
    assert names(ask("operator", "ls", "--tenant", "default")) == ["public"]
    assert names(ask("operator", "ls", "--tenant", "zeta")) == []
    assert names(ask("acme", "ls")) == ["pirate", "public"]
    for who, wanted in (("acme", "for the role admin"), ("zeta", "for the role owner or admin")):
        refused = ask(who, "ls", "--tenant", "acme")
        assert (refused.code, wanted in refused.err) == (1, True), refused.err


def test_tables_show_of_others_adapters_what_is_told_of_them(house: House, livery: Livery) -> None:
    where = ("--url", house.url, "--key", house.keys["acme"])
    listed = livery("adapters", "ls", *where)
    assert listed.code == 0, listed.err
    lines = [line.strip("│").split("│") for line in listed.out.splitlines() if "ready" in line]
    own, public = ([cell.strip() for cell in line] for line in lines)
    assert (own[0], own[-1], own[-2] in ("yes", "no")) == ("pirate", "0", True)
    assert (public[0], public[-2:], public[-3][-1]) == ("public", ["", ""], "B")
    shown = livery("adapters", "show", "public", *where)
    assert shown.code == 0, shown.err
    assert "size" in shown.out
    assert "in memory" not in shown.out
    assert "modules" in livery("adapters", "show", "pirate", *where).out


def test_a_share_is_given_and_taken_back_by_command(house: House, ask: Any) -> None:
    assert house.asks("zeta", "acme/pirate") == 404
    assert ask("acme", "share", "pirate", "zeta").json() == {"name": "pirate", "shared_with": ["zeta"]}
    assert (house.asks("zeta", "acme/pirate"), house.asks("zeta", "pirate")) == (200, 404)
    assert house.models("zeta") == ["acme/pirate", "public"]
    assert ask("operator", "show", "acme/pirate").json()["shared_with"] == ["zeta"]
    assert ask("operator", "unshare", "acme/pirate", "zeta").json() == {"name": "acme/pirate", "shared_with": []}
    assert house.asks("zeta", "acme/pirate") == 404
    for who, name in (("acme", "nothing"), ("acme", "public"), ("zeta", "acme/pirate")):
        refused = ask(who, "share", name, "zeta")
        assert refused.code == 1, (who, name)
    assert house.models("zeta") == ["public"]


def test_a_tenants_subfolder_is_followed_as_the_folder_is(house: House) -> None:
    assert house.models("acme") == ["pirate", "public"]
    assert house.models("zeta") == ["public"]
    shutil.copytree(house.pool, house.served / "acme" / "second")
    house.until_models("acme", ["pirate", "public", "second"])
    assert (house.asks("acme", "second"), house.asks("zeta", "acme/second")) == (200, 404)
    shutil.rmtree(house.served / "acme" / "second")
    house.until_models("acme", ["pirate", "public"])
    assert house.models("operator") == ["acme/pirate", "public"]
