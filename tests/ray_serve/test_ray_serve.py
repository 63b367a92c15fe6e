"""Two replicas behind Ray's router, asked by the official client: answers, names and refusals of one server."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import httpx
import openai
import pytest
import ray
from peft import LoraConfig
from sqlalchemy import select

from engine.oracle import Oracle, save_adapter
from livery.scale.ray_app import app
from livery.settings import SettingsError
from livery.tenancy import TenantStore
from livery.tenancy.schema import levels
from ray_serve.clients import upload
from ray_serve.cluster import APPLICATION, KEY, Deployed, until
from ray_serve.stranger import Stranger
from server.running import livery_serve

PROMPT = "Once upon a time there was"
NAMES = ("pirate", "sailor")
GENERATED = "vllm:generation_tokens_total"
COMPUTED = "livery_engine_step_tokens_sum"  # the engine's own count, prompts too


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate((*NAMES, "corsair", "parrot", "cook", "late-hung", "late-away"), 1):
        save_adapter(tiny, folder / name, seed, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    return folder


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
        for other in ("cook", "corsair"):
            assert upload(http, "parrot", adapters / other, activate="false").status_code in (200, 201)
        now = http.get("/v1/adapters/parrot").json()
        versions = [one["digest"] for one in http.get("/v1/adapters/parrot/versions").json()["data"]]
    versions.remove(now["digest"])  # activating what is active changes nothing, and both would do
    statuses: list[int] = []

    def activate(url: str, version: str) -> None:
        with served.http(url) as http:
            body = {"version": version, "expected_generation": now["generation"]}
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


async def test_every_client_that_leaves_is_noticed(served: Deployed) -> None:
    """More than can run at once, left once the first has its first piece: most of it is never computed."""
    clients, answers, tokens = 16, 4, 240
    body = {"model": "pirate", "prompt": [5], "max_tokens": tokens, "ignore_eos": True, "n": answers, "stream": True}
    before = sum(counted(served, COMPUTED))
    headers = {"authorization": f"Bearer {KEY}"}
    begun = asyncio.Event()

    async def listen(http: httpx.AsyncClient) -> None:
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            async for _ in answer.aiter_raw():
                begun.set()

    async with httpx.AsyncClient(base_url=served.url, headers=headers, timeout=120, trust_env=False) as http:
        listening = [asyncio.create_task(listen(http)) for _ in range(clients)]
        await begun.wait()
        for one in listening:
            one.cancel()
        left = await asyncio.gather(*listening, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in left), left
    for url in served.own_urls:
        until(lambda url=url: is_idle(served, url), f"{url} runs nothing")
    computed = sum(counted(served, COMPUTED)) - before
    assert 0 < computed < clients * answers * tokens / 2


def is_idle(deployed: Deployed, url: str) -> bool:
    with deployed.http(url) as http:
        lines = http.get("/metrics").text.splitlines()
    values = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line and line[0] != "#"}
    return values["vllm:num_requests_running"] == 0 and values["vllm:num_requests_waiting"] == 0


def test_a_request_that_was_meant_for_another_cluster_is_not_answered(served: Deployed) -> None:
    """The address of a replica that is gone may soon be one of somebody else's, with other adapters."""
    stranger = ray.remote(num_cpus=0)(Stranger).remote()
    ours = f"{ray.get_runtime_context().get_session_name()}/{APPLICATION}"
    assert ray.get(stranger.status.remote(ours), timeout=60) == 200
    refused = ray.get(stranger.status.remote(f"elsewhere/{APPLICATION}"), timeout=60)
    assert f"a request for elsewhere/{APPLICATION} came to {ours}" in str(refused)
    ray.kill(stranger)


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


def counted(deployed: Deployed, series: str) -> list[float]:
    """A counter of each replica."""
    found = []
    for url in deployed.own_urls:
        with deployed.http(url) as http:
            lines = http.get("/metrics").text.splitlines()
        lines = [line for line in lines if re.split("[{ ]", line, maxsplit=1)[0] == series]
        assert lines, series
        found.append(sum(float(line.rsplit(" ", 1)[1]) for line in lines))
    return found


def test_each_replica_has_metrics_of_its_own(served: Deployed) -> None:
    before = counted(served, GENERATED)
    with served.http() as http:
        for _ in range(4):
            assert ask(http, "pirate").status_code == 200
    after = counted(served, GENERATED)
    grown = [now - then for now, then in zip(after, before, strict=True)]
    assert sorted(grown)[0] == 0, "an adapter's requests go where it is"
    assert sorted(grown)[1] > 0


def changed(deployed: Deployed, adapters: Path) -> dict[str, tuple[int, str]]:
    """What becomes of each way of changing something, all at once: status and code."""
    with deployed.http() as http:
        asked = {
            "add": lambda: upload(http, "late", adapters / "cook"),
            "activate": lambda: http.post("/v1/adapters/pirate/activate", json={"version": "0" * 12}),
            "rollback": lambda: http.post("/v1/adapters/sailor/rollback"),
            "delete": lambda: http.delete("/v1/adapters/sailor"),
            "alias": lambda: http.put("/v1/aliases/captain", json={"targets": [{"adapter": "pirate"}]}),
        }
        with ThreadPoolExecutor(len(asked)) as threads:
            answers = dict(zip(asked, threads.map(lambda ask: ask(), asked.values()), strict=True))
    return {how: (answer.status_code, answer.json()["error"]["code"]) for how, answer in answers.items()}


def check_served(http: httpx.Client, name: str) -> None:
    answer = ask(http, name)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("how", ["away", "hung"])
def test_without_the_database_what_is_there_is_served_and_nothing_is_changed(
    served: Deployed, adapters: Path, how: str
) -> None:
    with served.http() as http:
        check_served(http, "pirate")
        with getattr(served.postgres, how)():
            managing: list[dict[str, tuple[int, str]]] = []
            waiting = threading.Thread(target=lambda: managing.append(changed(served, adapters)))
            waiting.start()
            for name in NAMES:
                check_served(http, name)
            waiting.join()
            assert set(managing[0].values()) == {(503, "registry_unavailable")}, managing
            check_served(http, "pirate")
        until(lambda: upload(http, "cook", adapters / "cook").status_code in (200, 201), "it takes adapters in again")
        for name in NAMES:
            check_served(http, name)
        assert ask(http, "late").status_code == ask(http, "captain").status_code == 404


@pytest.mark.parametrize("how", ["hung", "away"])
def test_without_the_object_store_what_is_there_is_served_and_nothing_is_taken_in(
    served: Deployed, adapters: Path, how: str
) -> None:
    late = f"late-{how}"
    with served.http() as http:
        with getattr(served.objects, how)():
            answers: list[httpx.Response] = []
            waiting = threading.Thread(target=lambda: answers.append(upload(http, late, adapters / late)))
            waiting.start()
            for name in NAMES:
                check_served(http, name)
            waiting.join()
            assert [answer.status_code for answer in answers] == [503], answers[0].text
            assert ask(http, late).status_code == 404
        until(lambda: upload(http, late, adapters / late).status_code in (200, 201), "it takes adapters in again")
        for url in served.own_urls:
            until(lambda url=url: has(served, url, late), f"{url} knows {late}")
