"""The demo model and its adapters, served and busy: what pictures of the console are taken of."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx

from server.running import livery_serve

MODEL = "smollm2-135m-instruct"
ADAPTERS = Path(__file__).parents[2] / "adapters" / "demo"
NAMES = ("pirate", "pirate", "sql", "bard", "pirate", "json", "portuguese", MODEL, "sql", "sentiment")
PROMPTS = ("How do I make tea?", "Tell me about the sea.", "My phone broke after one day.", "What be a good name?")
STREAMS = 3  # that go on all the time
FILES = ("adapter_config.json", "adapter_model.safetensors")


@contextmanager
def demo(folder: Path) -> Iterator[dict[str, str]]:
    """Where it is served, and the name that has two versions. Somebody asks for something until the block ends."""
    folder.mkdir()
    ended = threading.Event()
    flags = ("--max-model-len", "1024", "--adapter-memory", "64MB")
    with livery_serve(MODEL, ADAPTERS, folder, *flags) as server, ExitStack() as stack:
        for source in ("pirate", "portuguese"):
            files = {name: (ADAPTERS / source / name).read_bytes() for name in FILES}
            httpx.post(f"{server.url}/v1/adapters/bard/versions", files=files, timeout=120).raise_for_status()
        askers = [threading.Thread(target=_ask, args=(server.url, first, ended)) for first in range(STREAMS)]
        for asker in askers:
            asker.start()
            stack.callback(asker.join)
        stack.callback(ended.set)
        yield {"url": server.url, "detail": "bard"}


def _ask(url: str, first: int, ended: threading.Event) -> None:
    with httpx.Client(base_url=url, timeout=120) as client:
        for turn in itertools.count(first, STREAMS):
            if ended.is_set():
                return
            said = [{"role": "user", "content": PROMPTS[turn % len(PROMPTS)]}]
            body = {"model": NAMES[turn % len(NAMES)], "messages": said, "max_tokens": 24, "temperature": 0}
            client.post("/v1/chat/completions", json=body).raise_for_status()
