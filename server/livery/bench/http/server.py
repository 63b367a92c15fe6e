"""The server under measurement, in its own process: `livery serve` as it is, over a fake engine or a real one.

Run as `python -m livery.bench.http.server SETUP` with a Setup as JSON. SIGUSR1 begins a measurement inside, SIGUSR2
ends it and writes what it found; SIGHUP takes away what the setup names, or puts it back, and writes that it did.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Literal

import msgspec

from livery.bench.http.bare import METRICS, TENANCY, Switch
from livery.bench.http.clock import TextClock
from livery.bench.http.sampler import Sampler
from livery.engine.base import Engine, EngineConfig, GenerationRequest
from livery.engine.client import EngineClient
from livery.engine.fake import Behaviour, FakeEngine
from livery.running.server import run_server
from livery.settings import load_settings
from livery.text import Tokenizer
from livery_adapters.base_model import ModuleShape

VOCABULARY = 1 << 20  # above any tokenizer's
CONTEXT = 1 << 17
HIDDEN = 16
MODULES = {"model.layers.0.self_attn.q_proj": ModuleShape("linear", HIDDEN, HIDDEN)}  # that adapters may change
# What the fake engine says, over and over: prose with figures, a few accents and signs of several bytes.
SAYING = (
    "The market opens at six. By half past seven the first boats are back, and whoever wants the good fish has to be "
    "quick: 40 crates of mackerel, 12 of sole, hardly ever turbot. “Take it or leave it,” says Zoë at the café next "
    "door, “it won’t get any fresher.” A kilo costs 9.50 € today — a little less than last week.\n"
)


class Setup(msgspec.Struct, frozen=True):
    """What to serve, where, and where to write what was measured inside. `core` is None for all.

    `turns`: what SIGHUP takes away. `otlp_endpoint`: where its traces go.
    """

    model: str
    data: str
    port: int
    found: str
    fake: bool = True
    core: int | None = None
    turns: Literal["metrics", "tenancy"] = "metrics"
    otlp_endpoint: str | None = None


class Found(msgspec.Struct):
    """What was measured inside a server: samples by part, or seconds spent with text. `on`: whether it has what
    SIGHUP takes away."""

    samples: dict[str, int] = {}
    seconds: dict[str, float] = {}
    calls: dict[str, int] = {}
    on: bool = True


def fake_engine(config: EngineConfig, progress: Callable[[str], None]) -> Engine:
    """An engine that says SAYING as long as it is asked to."""
    progress("encoding what the fake engine says")
    ids = Tokenizer.from_directory(Path(config.model_path)).encode(SAYING)

    def say(request: GenerationRequest) -> list[int]:
        return list(itertools.islice(itertools.cycle(ids), request.sampling.max_tokens))

    return FakeEngine(Behaviour(script=say), vocab_size=VOCABULARY, max_model_len=CONTEXT, modules=MODULES)


def main() -> None:
    setup = msgspec.json.decode(sys.argv[1], type=Setup)
    if setup.core is not None:
        os.sched_setaffinity(0, {setup.core})
    sampler, clock = Sampler(), TextClock()
    switch = Switch(TENANCY if setup.turns == "tenancy" else METRICS)

    def begin(_number: int, _frame: FrameType | None) -> None:
        if setup.fake:
            sampler.begin()
        else:
            clock.begin()

    def end(_number: int, _frame: FrameType | None) -> None:
        sampler.end()
        tell(Found(dict(sampler.samples), dict(clock.seconds), dict(clock.calls)))

    def turn(_number: int, _frame: FrameType | None) -> None:
        switch.turn()
        tell(Found(on=switch.on))

    def tell(found: Found) -> None:
        part = Path(f"{setup.found}.part")
        part.write_bytes(msgspec.json.encode(found))
        part.rename(setup.found)

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    signal.signal(signal.SIGHUP, turn)
    flags = {"model": setup.model, "data": setup.data, "port": setup.port, "max_open": 4096}
    settings = load_settings(flags | {"otlp_endpoint": setup.otlp_endpoint}, {})
    run_server(settings, fake_engine if setup.fake else EngineClient)


if __name__ == "__main__":
    main()
