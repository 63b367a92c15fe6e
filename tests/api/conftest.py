"""Fixtures of the HTTP tests: a running server of one's own, or one for a whole module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from api.live_server import LiveServer, Serve, Setup
from livery.models import resolve_model
from livery.text import Tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_directory(resolve_model("smollm2-135m-instruct").path)


@contextmanager
def _servers(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    running: list[LiveServer] = []

    def serve(setup: Setup | None = None, folder: Path | None = None) -> LiveServer:
        server = LiveServer(setup or Setup(), tokenizer, folder or tmp_path_factory.mktemp("server"))
        server.start()
        running.append(server)
        return server

    yield serve
    for server in running:
        server.stop()


@pytest.fixture
def serve(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start a server of one's own; it stops with the test."""
    with _servers(tokenizer, tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def module_serve(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start a server that stops with the module."""
    with _servers(tokenizer, tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One usual server for all tests of a module."""
    with _servers(tokenizer, tmp_path_factory) as start:
        yield start()
