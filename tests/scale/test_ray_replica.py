"""A whole server without a listener, over a fake engine: what a replica of Ray Serve is."""

from __future__ import annotations

import asyncio
import re
import resource
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from api.live_server import MODULES, VOCAB
from api.peft_files import make_adapter
from livery.engine.base import Engine
from livery.engine.fake import FakeEngine
from livery.models import resolve_model
from livery.refusals import NotReady
from livery.running.engines import engine_of
from livery.scale import ray_config
from livery.scale.ray_config import NOT_THERE, RAYS_OWN, parse
from livery.scale.ray_exchange import Forwarded, Head
from livery.scale.ray_replica import ReplicaServer
from livery.scale.ray_routing import adapter_id
from livery.settings import Settings, SettingsError
from service.few_descriptors import at_most

KEY = "lv-test"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    model = tmp_path / "model"
    model.mkdir()
    demo = resolve_model("smollm2-135m-instruct").path
    for name in (*TOKENIZER, "config.json"):
        shutil.copy(demo / name, model / name)
    (model / "model.safetensors").touch()  # the fake engine reads no weights
    make_adapter(tmp_path / "adapters" / "pirate")
    args = {"model": str(model), "data": str(tmp_path / "data"), "adapters": str(tmp_path / "adapters"), "api_key": KEY}
    return parse({**args, "max_rank": 8}, {})[1]


def fake(*_: object) -> Engine:
    return FakeEngine(vocab_size=VOCAB, max_model_len=256, modules=MODULES)


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[ReplicaServer]:
    with at_most(1000):
        server = await ReplicaServer.start(settings, fake)
        yield server
    await server.stop(5.0)


def asking(model: str, key: str = KEY, **fields: object) -> Forwarded:
    body = orjson.dumps({"model": model, "prompt": [5, 6], "max_tokens": 3, **fields})
    headers = ((b"authorization", f"Bearer {key}".encode()), (b"content-type", b"application/json"))
    return Forwarded(
        "livery", "POST", "http", "/v1/completions", b"", (*headers, (b"host", b"x")), ("10.0.0.1", 5), body
    )


async def answer(server: ReplicaServer, request: Forwarded, asked: str = "") -> tuple[Head, bytes]:
    said = [message async for message in server.answer(request, asked, asyncio.Event().wait)]  # type: ignore[arg-type]
    assert isinstance(said[0], Head)
    return said[0], b"".join(piece for piece in said[1:] if isinstance(piece, bytes))


async def test_it_answers_as_the_server_does(server: ReplicaServer) -> None:
    head, body = await answer(server, asking("pirate"))
    assert head.status == 200
    assert dict(head.headers)[b"x-livery-adapter"].startswith(b"pirate@")
    assert head.adapter == adapter_id("pirate")
    assert (await answer(server, asking("model")))[0].adapter == ""
    assert (await answer(server, asking("nobody")))[0].adapter is None
    assert orjson.loads(body)["usage"]["completion_tokens"] == 3
    assert (await answer(server, asking("pirate", key="other")))[0].status == 401
    assert (await answer(server, asking("nobody")))[0].status == 404
    _, events = await answer(server, asking("pirate", stream=True))
    assert events.endswith(b"data: [DONE]\n\n")


async def test_it_may_open_as_many_files_as_the_system_allows(server: ReplicaServer) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft == hard


async def test_it_says_which_adapters_are_in_its_memory(server: ReplicaServer) -> None:
    await answer(server, asking("pirate"), "id-of-pirate")
    await answer(server, asking("nobody"), "id-of-nobody")
    await answer(server, asking("model"), "id-of-base")
    assert await server.ids() == {"id-of-pirate", adapter_id("pirate")}


async def test_strangers_are_not_let_in_without_a_key(settings: Settings) -> None:
    """Said in the words of an application on Ray, which has no --host."""
    open_to_all = settings.model_copy(update={"api_key": None})
    with pytest.raises(SettingsError, match=r"Ray Serve listens.*LIVERY_API_KEY.*insecure_no_auth=true") as refused:
        await ReplicaServer.start(open_to_all, fake)
    assert "127.0.0.1" not in str(refused.value) and "--host" not in str(refused.value)
    server = await ReplicaServer.start(open_to_all.model_copy(update={"insecure_no_auth": True}), fake)
    delete = Forwarded("livery", "DELETE", "http", "/v1/adapters/pirate", b"", ((b"host", b"localhost"),), ("::1", 5))
    head, body = await answer(server, delete)
    assert (head.status, b"Ray Serve" in body) == (403, True), body
    await server.stop(0.0)


async def test_it_is_unhealthy_when_its_engine_is_lost(settings: Settings) -> None:
    engine = FakeEngine(vocab_size=VOCAB, max_model_len=256, modules=MODULES)
    server = await ReplicaServer.start(settings, lambda *_: engine)
    await server.check()
    await engine.die()
    with pytest.raises(NotReady):
        await server.check()
    await server.stop(0.0)


async def test_replicas_of_a_machine_have_folders_of_their_own_and_take_over_those_that_are_left(
    settings: Settings, tmp_path: Path
) -> None:
    own = settings.model_copy(update={"data": tmp_path / "own-{replica}", "adapters": None})
    one, two = await ReplicaServer.start(own, fake), await ReplicaServer.start(own, fake)
    await one.stop(0.0)
    three = await ReplicaServer.start(own, fake)
    assert sorted(path.name for path in tmp_path.glob("own-*")) == ["own-0", "own-1"]
    await two.stop(0.0)
    await three.stop(0.0)


class Watched(Settings):
    """Settings that know which of them somebody asked for."""

    def __getattribute__(self, name: str) -> object:
        if name in Settings.model_fields:
            ASKED_FOR.add(name)
        return super().__getattribute__(name)


ASKED_FOR: set[str] = set()


async def test_every_setting_is_used_or_refused(settings: Settings) -> None:
    """One that is taken without a word does what it does under `livery serve`."""
    refused = {*RAYS_OWN, *NOT_THERE, "api_workers"}
    for name in refused:
        with pytest.raises(SettingsError, match=f"^{name}"):
            parse({"model": "m", name: "2"}, {})
    watched = Watched.model_validate({name: getattr(settings, name) for name in Settings.model_fields})
    ASKED_FOR.clear()
    engine_of(watched)
    server = await ReplicaServer.start(watched, fake)
    await server.stop(0.0)
    by_ray = Path(ray_config.__file__).with_name("ray_app.py").read_text()  # which isn't imported without Ray
    used = ASKED_FOR | set(re.findall(r"\bsettings\.(\w+)", by_ray))
    assert Settings.model_fields.keys() - used - refused == set()


async def test_metrics_ask_for_a_key_unless_told_otherwise(settings: Settings) -> None:
    scrape = Forwarded("livery", "GET", "http", "/metrics", b"", ((b"host", b"x"),), ("10.0.0.1", 5))
    for opened, status in ((False, 401), (True, 200)):
        server = await ReplicaServer.start(settings.model_copy(update={"metrics_without_key": opened}), fake)
        assert (await answer(server, scrape))[0].status == status
        await server.stop(0.0)


async def test_a_folder_of_adapters_that_is_not_there_is_named(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"{tmp_path}/nowhere is not a folder"):
        await ReplicaServer.start(settings.model_copy(update={"adapters": tmp_path / "nowhere"}), fake)
