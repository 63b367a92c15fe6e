"""A limit per minute on two servers of one registry."""

from __future__ import annotations

from pathlib import Path

import httpx

from api.live_server import LiveServer, Serve, Setup


def test_a_limit_per_minute_holds_over_servers_of_one_registry(serve: Serve, tmp_path: Path) -> None:
    """Two a minute: the second server alone would let in another one."""
    one, two = (serve(Setup(registry=f"sqlite:///{tmp_path / 'shared.db'}")) for _ in range(2))
    key = one.make_key("acme", limits={"requests_per_minute": 2})
    two.call(two.keys.refresh())
    assert [_status(one, key) for _ in range(3)] == [200, 200, 429]
    _exchange(one)
    assert _status(two, key) == 200, "it hasn't heard of anything yet"
    _exchange(two)
    assert _status(two, key) == 429


def test_a_server_with_a_registry_of_its_own_exchanges_nothing(serve: Serve) -> None:
    assert serve().levels is None


def _status(server: LiveServer, key: str) -> int:
    headers = {"authorization": f"Bearer {key}"}
    return httpx.get(f"{server.url}/v1/models", headers=headers, trust_env=False).status_code


def _exchange(server: LiveServer) -> None:
    assert server.levels is not None
    server.call(server.levels.once())
