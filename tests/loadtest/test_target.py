"""What a server serves, and who it says it is."""

from __future__ import annotations

import httpx
import pytest

from livery_loadtest.session import find_served
from livery_loadtest.target import KEY_ENV, Target, TargetUnusable, list_models, server_version
from loadtest.known_server import KnownServer


async def test_models_and_version_come_from_the_server(faulty: KnownServer) -> None:
    target = Target("faulty", faulty.url + "/v1/")
    assert target.url == faulty.url
    async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
        assert await list_models(client, target) == faulty.models
        assert await server_version(client, target) == "faulty-1.0"


async def test_a_server_without_models_is_unusable(faulty: KnownServer) -> None:
    faulty.models.clear()
    async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
        with pytest.raises(TargetUnusable, match="lists no model"):
            await list_models(client, Target("faulty", faulty.url))
        with pytest.raises(TargetUnusable, match="is the server up"):
            await list_models(client, Target("nowhere", "http://127.0.0.1:9"))


async def test_a_server_that_wants_a_key_is_told_with_where_it_goes(
    faulty: KnownServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty.key = "sk-right"
    target = Target("faulty", faulty.url)
    monkeypatch.delenv(KEY_ENV, raising=False)
    with pytest.raises(TargetUnusable, match=f"answers 401; it asks for a key: put one into {KEY_ENV}"):
        await find_served(target)
    monkeypatch.setenv(KEY_ENV, "sk-wrong")
    with pytest.raises(TargetUnusable, match=f"the key in {KEY_ENV} isn't one of this server's"):
        await find_served(target)
    monkeypatch.setenv(KEY_ENV, "sk-right")
    assert (await find_served(target)).base == "base"
    with pytest.raises(TargetUnusable, match="answers 404; is this the root of a server"):
        await find_served(Target("below", faulty.url + "/deeper"))


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "", "ftp://x"])
def test_a_target_needs_a_url(url: str) -> None:
    with pytest.raises(ValueError, match="expected NAME=http://HOST:PORT"):
        Target("ours", url)
