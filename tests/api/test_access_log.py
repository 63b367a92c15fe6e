"""The one line that each request leaves in the log."""

from __future__ import annotations

import logging

import httpx
import pytest

from api.live_server import Serve

PROBES = ("/health", "/ready", "/metrics", "/ping")


def test_probes_that_find_all_well_are_not_news(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    with caplog.at_level(logging.DEBUG, "livery.access"):
        for path in (*PROBES, "/v1/models"):
            assert httpx.get(f"{server.url}{path}").status_code == 200
        server.stop()  # the line comes after the answer
    levels = {record.getMessage().split()[2]: record.levelno for record in caplog.records}
    assert levels == {**dict.fromkeys(PROBES, logging.DEBUG), "/v1/models": logging.INFO}


def test_a_probe_that_fails_is_news(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    server.service.drain()
    with caplog.at_level(logging.DEBUG, "livery.access"):
        assert httpx.get(f"{server.url}/ready").status_code == 503
        server.stop()
    assert [record.levelno for record in caplog.records] == [logging.INFO]
