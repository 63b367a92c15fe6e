"""`livery serve`: a server over the engine that the settings name."""

from __future__ import annotations

from livery.running.engines import engine_of
from livery.running.server import run_server
from livery.settings import Settings


def serve(settings: Settings) -> None:
    """Serve a base model and a folder of adapters over an OpenAI-compatible API."""
    run_server(settings, engine_of(settings))
