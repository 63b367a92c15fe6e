"""Two replicas behind Ray's router, asked by the official client: answers, names and refusals of one server."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import openai
import pytest
from peft import LoraConfig
from sqlalchemy import select

from engine.oracle import Oracle, save_adapter
from livery.scale.ray_app import app
from livery.settings import SettingsError
from livery.tenancy import TenantStore
from livery.tenancy.schema import levels
from ray_serve.cluster import KEY, Deployed, until
from server.running import livery_serve

PROMPT = "Once upon a time there was"
NAMES = ("pirate", "sailor")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate((*NAMES, "corsair", "parrot", "cook"), 1):
        save_adapter(tiny, folder / name, seed, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    return folder


def upload(http: httpx.Client, name: str, folder: Path, **query: object) -> httpx.Response:
    files = {
        file: (file, (folder / file).read_bytes()) for file in ("adapter_config.json", "adapter_model.safetensors")
    }
    return http.post(f"/v1/adapters/{name}/versions", files=files, params={k: str(v) for k, v in query.items()})


@pytest.fixture(scope="module")
def served(deployed: Deployed, adapters: Path) -> Deployed:
    """With two adapters that came in through Ray."""
    with deployed.http() as http:
        for name in NAMES:
            answer = upload(http, name, adapters / name)
            assert answer.status_code in (200, 201), answer.text
    for url in deployed.own_urls:
        for name in NAMES:
            until(lambda url=url, name=name: has(deployed, url, name), f"{url} knows {name}")
    return deployed


def has(deployed: Deployed, url: str, name: str) -> bool:
    with deployed.http(url) as http:
        return ask(http, name).status_code == 200


def ask(http: httpx.Client, model: str, **fields: object) -> httpx.Response:
    return http.post("/v1/completions", json={"model": model, "prompt": [5, 6, 7], "max_tokens": 2, **fields})


def streamed(client: openai.OpenAI, model: str) -> str:
    stream = client.completions.create(model=model, prompt=PROMPT, max_tokens=48, temperature=0, stream=True)
    return "".join(chunk.choices[0].text for chunk in stream if chunk.choices)


def test_answers_are_those_of_a_server_asked_directly(served: Deployed, tiny: Path, adapters: Path) -> None:
    folder = served.folder / "direct"
    for name in NAMES:
        shutil.copytree(adapters / name, folder / "adapters" / name)
    models = (tiny.name, *NAMES)
    with (
        livery_serve(tiny, folder / "adapters", folder, "--threads", "1", environ={"LIVERY_REGISTRY": ""}) as direct,
        openai.OpenAI(base_url=f"{direct.url}/v1", api_key=KEY) as there,
        served.client() as here,
    ):
        expected = {model: streamed(there, model) for model in models}
        assert {model: streamed(here, model) for model in models} == expected
        assert {model: streamed(here, model) for model in models} == expected
    assert len(set(expected.values())) == 3


def test_tokens_are_those_of_peft_on_either_replica(served: Deployed, tiny: Path, adapters: Path) -> None:
    """Greedy, the base and each adapter: through Ray, and from the replica that Ray doesn't choose."""
    oracle, prompt, count = Oracle(tiny, 256), [5, 6, 7, 400, 31000], 24
    for name in (tiny.name, *NAMES):
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(oracle.logits(tokens, adapters / name if name in NAMES else None)[-1].argmax()))
        for url in (served.url, *served.own_urls):
            with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
                stream = client.completions.create(
                    model=name,
                    prompt=prompt,
                    max_tokens=count,
                    temperature=0,
                    stream=True,
                    extra_body={"return_token_ids": True, "ignore_eos": True},
                )
                found = [token for chunk in stream for choice in chunk.choices for token in choice.token_ids]  # type: ignore[attr-defined]
            assert found == tokens[len(prompt) :], (name, url)


def test_each_answer_says_which_version_it_ran_on(served: Deployed) -> None:
    with served.http() as http:
        assert ask(http, "pirate").headers["x-livery-adapter"].startswith("pirate@")


def test_what_one_replica_takes_in_the_other_serves(served: Deployed, adapters: Path) -> None:
    one, two = served.own_urls
    with served.http(one) as there, served.http(two) as here:
        assert upload(there, "corsair", adapters / "corsair").status_code in (200, 201)
        until(lambda: ask(here, "corsair").status_code == 200, "the other replica serves it")
        assert ask(here, "corsair").headers["x-livery-adapter"] == ask(there, "corsair").headers["x-livery-adapter"]


async def test_of_two_replicas_that_change_a_name_at_once_one_does(served: Deployed, adapters: Path) -> None:
    """Compare and set, in the registry's one transaction."""
    with served.http() as http:
        assert upload(http, "parrot", adapters / "parrot").status_code in (200, 201)
        first = http.get("/v1/adapters/parrot").json()
        assert upload(http, "parrot", adapters / "cook", activate="false").status_code in (200, 201)
        versions = [one["digest"] for one in http.get("/v1/adapters/parrot/versions").json()["data"]]
        generation = http.get("/v1/adapters/parrot").json()["generation"]
    assert first["digest"] in versions
    statuses: list[int] = []

    def activate(url: str, version: str) -> None:
        with served.http(url) as http:
            body = {"version": version, "expected_generation": generation}
            statuses.append(http.post("/v1/adapters/parrot/activate", json=body).status_code)

    await asyncio.gather(
        *(asyncio.to_thread(activate, url, one) for url, one in zip(served.own_urls, versions, strict=True))
    )
    assert sorted(statuses) == [200, 409]

    def bound(url: str) -> str:
        with served.http(url) as http:
            return ask(http, "parrot").headers["x-livery-adapter"]

    until(lambda: len({bound(url) for url in served.own_urls}) == 1, "both replicas serve the same version")


def test_what_ray_does_not_scale_by_is_refused_by_name(served: Deployed) -> None:
    scaled = {**served.args, "max_replicas": 2}
    with pytest.raises(SettingsError, match=r"autoscaling\.colour: Ray has no such setting; it has .*upscale_delay_s"):
        app({**scaled, "autoscaling": {"colour": 1}})
    with pytest.raises(SettingsError, match=r"autoscaling\.upscale_delay_s is -1"):
        app({**scaled, "autoscaling": {"upscale_delay_s": -1}})


def test_refusals_are_the_servers_own(served: Deployed) -> None:
    with served.http() as http:
        assert ask(http, "nobody").json()["error"]["code"] == "model_not_found"
        too_long = http.post("/v1/completions", content=b'{"model": "' + b"x" * (3 << 20) + b'"}')
        assert (too_long.status_code, too_long.json()["error"]["code"]) == (413, "request_too_large")
        assert http.post("/v1/completions", content=b"{").status_code == 400
        assert http.get("/v1/nothing").status_code == 404
        assert http.post("/v1/messages", json={"model": "nobody"}).json()["type"] == "error"
    stranger = httpx.post(f"{served.url}/v1/completions", json={"model": "pirate", "prompt": "x"}, trust_env=False)
    assert stranger.status_code == 401
    files = {"adapter_config.json": b"x" * (4 << 20)}
    assert httpx.post(f"{served.url}/v1/adapters/x/versions", files=files, trust_env=False).status_code == 401


def test_every_client_that_leaves_is_noticed(served: Deployed) -> None:
    body = {"model": "pirate", "prompt": [5], "max_tokens": 200, "ignore_eos": True, "n": 4, "stream": True}
    with served.http() as http:
        for _ in range(8):
            with http.stream("POST", "/v1/completions", json=body) as answer:
                next(answer.iter_raw())
    for url in served.own_urls:
        until(lambda url=url: is_idle(served, url), f"{url} runs nothing")


def is_idle(deployed: Deployed, url: str) -> bool:
    with deployed.http(url) as http:
        lines = http.get("/metrics").text.splitlines()
    values = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line and line[0] != "#"}
    return values["vllm:num_requests_running"] == 0 and values["vllm:num_requests_waiting"] == 0


def test_a_limit_per_minute_holds_over_both_replicas(served: Deployed, tiny: Path) -> None:
    """The second one lets in what came before it heard of the first, and no minute's worth of its own."""
    per_minute, begun, let_in = 40, time.monotonic(), 0
    with closing(TenantStore.open(served.postgres.url)) as tenants:
        _, key, _ = tenants.create_key("acme", limits={"requests_per_minute": per_minute}, occupied=lambda _: None)

        def told() -> float:
            with tenants.database.read() as connection:
                return float(connection.scalar(select(levels.c.requests).where(levels.c.kind == "key")) or 0)

        def refused(url: str) -> bool:
            nonlocal let_in
            body = {"model": tiny.name, "prompt": [5], "max_tokens": 1}
            headers = {"authorization": f"Bearer {key}"}
            status = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=120).status_code
            let_in += status == 200
            return status == 429

        one, two = served.own_urls
        until(lambda: refused(one), "the first one has let in as many as it may")
        until(lambda: told() > per_minute / 2, "it has told so")
        before = told()
        refused(two)
        until(lambda: told() != before, "the second one has told of its request, and so heard of the others")
        until(lambda: refused(two), "it lets in no more")
    assert let_in <= per_minute * (1.5 + (time.monotonic() - begun) / 60)


def test_each_replica_has_metrics_of_its_own(served: Deployed) -> None:
    def tokens() -> list[float]:
        found = []
        for url in served.own_urls:
            with served.http(url) as http:
                lines = [line for line in http.get("/metrics").text.splitlines() if "generation_tokens_total{" in line]
                found.append(sum(float(line.rsplit(" ", 1)[1]) for line in lines))
        return found

    before = tokens()
    with served.http() as http:
        for _ in range(4):
            assert ask(http, "pirate").status_code == 200
    after = tokens()
    grown = [now - then for now, then in zip(after, before, strict=True)]
    assert sorted(grown)[0] == 0, "an adapter's requests go where it is"
    assert sorted(grown)[1] > 0


def test_while_the_database_is_away_what_is_there_is_served(served: Deployed, adapters: Path) -> None:
    with served.http() as http:
        assert ask(http, "pirate").status_code == 200
        with served.postgres.away():
            assert ask(http, "pirate").status_code == 200
            assert ask(http, "sailor").status_code == 200
            refused = upload(http, "cook", adapters / "cook")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "registry_unavailable")
        until(lambda: upload(http, "cook", adapters / "cook").status_code in (200, 201), "it takes adapters in again")


@pytest.fixture
def away(served: Deployed) -> Iterator[None]:
    with served.objects.away():
        yield


@pytest.mark.usefixtures("away")
def test_while_the_object_store_is_away_what_is_there_is_served(served: Deployed, adapters: Path) -> None:
    with served.http() as http:
        answers: list[int] = []
        waiting = threading.Thread(target=lambda: answers.append(upload(http, "late", adapters / "cook").status_code))
        waiting.start()
        assert ask(http, "pirate").status_code == 200
        waiting.join()
        assert answers == [503]
        assert ask(http, "late").status_code == 404
