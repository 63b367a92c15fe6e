"""Lists and reports wait for each other, tenant by tenant, and for nobody else; nobody else waits for them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from api.busy_threads import taken
from api.live_server import BASE, LiveServer, Serve, Setup
from livery.beside import REPORTING
from livery.engine.base import EngineStats
from livery.status_rows import Wanted
from livery.tenancy import Principal

LISTS = ("/v1/models", "/v1/adapters", "/v1/aliases", "/v1/usage", "/v1/status", "/v1/status?sort=tokens")


def get(server: LiveServer, path: str, key: str) -> int:
    return httpx.get(f"{server.url}{path}", headers={"authorization": f"Bearer {key}"}, timeout=60).status_code


def test_who_lists_much_keeps_nobody_else_waiting(serve: Serve) -> None:
    server = serve(Setup(admin=True))
    many, few = (server.make_key(name, role="owner") for name in ("many", "few"))
    admin = server.make_key("default", role="admin")
    with ThreadPoolExecutor(70) as pool:
        with taken(REPORTING):
            # More than the event loop's own threads are.
            asked = [pool.submit(get, server, path, many) for path in LISTS for _ in range(10)]
            asked.append(pool.submit(get, server, "/v1/models", few))
            headers = {"authorization": f"Bearer {admin}"}
            for path in ("keys", "tenants"):
                url = f"{server.admin_url}/admin/v1/{path}"
                asked.append(pool.submit(lambda at: httpx.get(at, headers=headers, timeout=60).status_code, url))
            while sum(map(len, REPORTING._waiting.values())) < len(asked):
                assert not any(one.done() for one in asked)
            waiting = {tenant: len(line) for tenant, line in REPORTING._waiting.items()}
            assert waiting == {"many": 60, "few": 1, "default": 2}
            revoked = server.make_key("few")  # read by the thread that follows keys
            server.tenants.revoke_key(revoked[3:11])
            server.call(server.keys.refresh())
            assert get(server, "/v1/models/nobody", revoked) == 401
            assert get(server, "/v1/models/nobody", few) == 404, "a name that was never asked for is looked up"
            body = {"model": BASE, "prompt": [3, 4], "max_tokens": 1}
            headers = {"authorization": f"Bearer {few}"}
            assert httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=30).status_code == 200
            server.call(server.flusher.flush())
            assert not len(server.service.admission.meter), "usage is written by a thread of its own"
        assert {one.result() for one in asked} == {200}


def test_figures_are_gathered_once_for_all_of_a_tenant_who_wait(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    overview, service = server.app.state.context.overview, server.service
    begun: list[int] = []
    progress = service.progress

    async def ask_all() -> list[dict[str, Any]]:
        go_on = asyncio.Event()

        async def held() -> EngineStats:
            begun.append(1)
            await go_on.wait()
            return await progress()

        monkeypatch.setattr(service, "progress", held)
        own, others = Principal("acme", "user", "k1"), Principal("bob", "user", "k2")
        asked = [asyncio.create_task(overview.status(own, Wanted()))]
        while not begun:
            await asyncio.sleep(0)
        asked += [asyncio.create_task(overview.status(who, Wanted(limit=at))) for who in (own, others) for at in (1, 2)]
        while len(begun) < 2:
            await asyncio.sleep(0)
        go_on.set()
        return await asyncio.gather(*asked)

    found = server.call(ask_all())
    assert len(begun) == 3, "the first one, bob's two, and acme's two that came later"
    assert [one["caller"]["tenant"] for one in found] == ["acme", "acme", "acme", "bob", "bob"]
    assert [one["adapters"]["limit"] for one in found] == [100, 1, 2, 1, 2]
