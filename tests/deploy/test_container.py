"""The container of the manifests as a process: probes, drain, and every line of the gateway's protocol.

On a tiny model, and on the demo base by `make deploy-check`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from peft import LoraConfig
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from deploy.manifests import BASE, KUBERNETES, ROOT, environment, literals, read, the
from engine.oracle import save_adapter
from livery.models import cache_dir
from observability.parts import prometheus
from server.running import tiny_model

GATEWAY = KUBERNETES / "overlays" / "gateway"
PROTOCOL = tomllib.loads((Path(__file__).parent / "protocol.toml").read_text())["line"]
API_KEY = "of api-key"  # what stands in for the secret
TARGETS = ("pirate", "portuguese")


@dataclass
class Pod:
    """A container's process, and what the kubelet would know of it."""

    spec: dict[str, Any]  # of the pod
    url: str
    process: subprocess.Popen[bytes]
    log: Path
    home: Path
    environ: dict[str, str]

    def probe(self, name: str) -> bool:
        """Ask as the kubelet does, without a key: a status from 200 to 399 in time is a yes."""
        probe = self.spec["containers"][0][f"{name}Probe"]
        try:
            answer = httpx.get(self.url + probe["httpGet"]["path"], timeout=probe["timeoutSeconds"])
        except httpx.TransportError:
            return False
        return 200 <= answer.status_code < 400

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=API_KEY, max_retries=0, timeout=120)

    def series(self) -> dict[str, Metric]:
        """The families of a scrape without a key, by the names of their samples."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).raise_for_status().text
        families = text_string_to_metric_families(text)
        return {sample.name: family for family in families for sample in family.samples}


DEMO = "smollm2-135m-instruct"


@pytest.fixture(scope="module", params=["tiny", pytest.param(DEMO, marks=pytest.mark.deploy)])
def pod(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """The container's command line with its volumes as folders and a free port, on the demo overlay's settings.

    Of the gateway's overlay it has the setting that opens /metrics. Where a home folder or the working folder would be,
    the image is read-only; here they are empty folders, in which nothing may appear.
    """
    folder = tmp_path_factory.mktemp("pod")
    spec = the(read(BASE / "deployment.yaml"), "Deployment")["spec"]["template"]["spec"]
    found = spec["containers"][0]
    own = literals(GATEWAY).keys() - literals(KUBERNETES / "overlays" / "postgres-object-store").keys()
    settings = literals(KUBERNETES / "overlays" / "cpu-demo") | {name: literals(GATEWAY)[name] for name in own}
    paths = {mount["mountPath"]: folder / mount["name"] for mount in found["volumeMounts"]}
    for path in (*paths.values(), folder / "home", folder / "work"):
        path.mkdir()
    assert settings["LIVERY_MODEL"] == DEMO
    if request.param == DEMO:
        for name in TARGETS:
            shutil.copytree(ROOT / "adapters" / "demo" / name, paths["/adapters"] / name)
    else:
        tiny_model(folder / "tiny")
        for seed, name in enumerate(TARGETS, 1):
            lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
            save_adapter(folder / "tiny", paths["/adapters"] / name, seed, lora)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mapped = {**{mount: str(path) for mount, path in paths.items()}, str(found["ports"][0]["containerPort"]): str(port)}
    args = [mapped.get(arg, arg) for arg in found["args"]]
    environ = {name: _moved(value, mapped) for name, value in environment(found, settings).items()}
    # Compiled kernels are taken from where this user's lie: compiling them takes half a minute.
    environ |= {"LIVERY_CACHE": str(cache_dir()), "HOME": str(folder / "home"), "TMPDIR": str(paths["/tmp"])}
    if request.param != DEMO:
        # As many bytes as the demo base's would be hundreds of thousands of blocks.
        environ |= {"LIVERY_MODEL": str(folder / request.param), "LIVERY_KV_MEMORY": "16MiB"}
    environ |= {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "OMP_WAIT_POLICY") if name in os.environ}
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-B", "-m", "livery", "serve", *args],
            cwd=folder / "work",
            env=environ,
            stdout=out,
            stderr=out,
        )
    try:
        yield Pod(spec, f"http://127.0.0.1:{port}", process, log, folder / "home", environ)
    finally:
        process.kill()
        process.wait(60)


def _moved(value: str, mapped: dict[str, str]) -> str:
    """A path below a mount where that lies here."""
    for mount, path in mapped.items():
        if value == mount or value.startswith(f"{mount}/"):
            return path + value.removeprefix(mount)
    return value


def test_it_starts_within_what_the_startup_probe_allows(pod: Pod) -> None:
    probe = pod.spec["containers"][0]["startupProbe"]
    until = time.monotonic() + probe["periodSeconds"] * probe["failureThreshold"]
    while not pod.probe("startup"):
        assert pod.process.poll() is None and time.monotonic() < until, pod.log.read_text()[-3000:]
    assert pod.probe("readiness")
    assert pod.probe("liveness")
    assert httpx.get(f"{pod.url}/v1/models", timeout=30).status_code == 401  # nothing else opened with /metrics


def test_every_target_of_a_rewrite_is_served_under_its_name(pod: Pod) -> None:
    (rewrite,) = read(GATEWAY / "rewrite.yaml")
    targets = [target["modelRewrite"] for rule in rewrite["spec"]["rules"] for target in rule["targets"]]
    assert sorted(targets) == sorted(TARGETS)
    for target in targets:
        answer = pod.client().chat.completions.with_raw_response.create(
            model=target, messages=[{"role": "user", "content": "Hello"}], max_tokens=2
        )
        assert answer.headers["x-livery-adapter"].startswith(f"{target}@")


def test_without_the_picker_a_rewritten_name_needs_an_alias(pod: Pod) -> None:
    """As server/deploy/README.md has it: the gateway passes `support` on as it is then."""
    (rewrite,) = read(GATEWAY / "rewrite.yaml")
    (rule,) = rewrite["spec"]["rules"]
    name = rule["matches"][0]["model"]["value"]
    with pod.client() as client:
        with pytest.raises(openai.NotFoundError, match="model_not_found"):
            client.completions.create(model=name, prompt="Once", max_tokens=1)
        targets = [{"adapter": one["modelRewrite"], "weight": one["weight"]} for one in rule["targets"]]
        url, key = f"{pod.url}/v1/aliases/{name}", {"authorization": f"Bearer {API_KEY}"}
        httpx.put(url, json={"targets": targets}, headers=key, timeout=30).raise_for_status()
        answer = client.completions.with_raw_response.create(model=name, prompt="Once", max_tokens=1)
        assert answer.headers["x-livery-adapter"].partition("@")[0] in TARGETS
        httpx.delete(url, headers=key, timeout=30).raise_for_status()


@pytest.mark.parametrize("line", PROTOCOL, ids=lambda line: line["series"])
def test_a_line_of_the_protocol_holds(line: dict[str, Any], pod: Pod) -> None:
    family = pod.series()[line["series"]]
    assert family.type == "gauge"
    (sample,) = family.samples
    assert {"count": sample.value == int(sample.value), "share": 0 <= sample.value <= 1}.get(
        line["value"], abs(sample.value - time.time()) < 3600
    ), sample
    for label, form in line.get("labels", {}).items():
        assert re.fullmatch({"number": r"\d+", "names": r"([^,\s]+(,[^,\s]+)*)?"}[form], sample.labels[label]), sample


def test_resident_adapters_are_listed_as_requests_name_them(pod: Pod) -> None:
    """What lora-affinity-scorer looks up is the `model` of a request."""
    (sample,) = pod.series()["vllm:lora_requests_info"].samples
    assert set(TARGETS) <= set(sample.labels["running_lora_adapters"].split(","))
    assert int(sample.labels["max_lora"]) > 0


def test_what_scales_and_alerts_is_in_a_scrape(pod: Pod) -> None:
    """Under exactly these names: an autoscaler that asks for another scales nothing and says so nowhere one looks."""
    series = pod.series()
    scaler = the(read(KUBERNETES / "components" / "autoscaling" / "autoscaler.yaml"), "HorizontalPodAutoscaler")
    adapter = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    for metric in scaler["spec"]["metrics"]:
        name = metric["pods"]["metric"]["name"]
        assert series[name].type == "gauge"
        matched = [rule for rule in adapter if re.fullmatch(_pattern(rule), name) and "name" not in rule]
        assert len(matched) == 1, name
    rules = (KUBERNETES / "components" / "monitoring" / "rules.yaml").read_text()
    expressions = [
        rule["expr"] for group in yaml.safe_load(rules)["spec"]["groups"] for rule in group["rules"] if "expr" in rule
    ]
    named = {name for expression in expressions for name in re.findall(r"(?<![:\w])(?:livery_|vllm:)\w+", expression)}
    assert len(named) > 10
    after_events = {"livery_tenant_throttled_total"}  # counted by label from the first time on
    assert named - after_events <= series.keys(), named - series.keys()


def _pattern(rule: dict[str, str]) -> str:
    found = re.search(r'__name__=~"([^"]+)"', rule["seriesQuery"])
    assert found is not None
    return found[1]  # Prometheus matches the whole name


@pytest.mark.deploy
def test_a_key_made_in_the_container_opens_the_server(pod: Pod) -> None:
    """As in `kubectl exec deploy/livery -- livery keys create`: the folder comes from the image's environment."""
    command = [sys.executable, "-B", "-m", "livery", "keys", "create", "--tenant", "acme", "--role", "owner"]
    done = subprocess.run(command, env=pod.environ, capture_output=True, text=True, timeout=120, check=True)
    key = re.search(r"lv-\S+", done.stdout)
    assert key is not None, done.stdout
    until = time.monotonic() + 60
    while httpx.get(f"{pod.url}/v1/models", headers={"authorization": f"Bearer {key[0]}"}, timeout=30).is_error:
        assert time.monotonic() < until


@pytest.mark.deploy
def test_prometheus_answers_what_the_adapter_asks_it(pod: Pod, tmp_path: Path) -> None:
    """The adapter's two questions as it makes them of its rule, with the labels that a ServiceMonitor gives."""
    labels = {"namespace": "llm", "pod": "livery-0"}
    (rule,) = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    with prometheus(pod.url.removeprefix("http://"), "none", tmp_path, labels) as watcher:
        watcher.wait_for("livery_ready == 1")
        found = {sample["metric"]["__name__"]: sample["metric"] for sample in watcher.query(rule["seriesQuery"])}
        assert found.keys() == {"livery_open_sequences", "livery_queued_tokens"}
        for name in found:
            promql = rule["metricsQuery"].replace("<<.Series>>", name).replace("<<.GroupBy>>", "pod")
            promql = promql.replace("<<.LabelMatchers>>", 'namespace="llm",pod=~"livery-0|livery-1"')
            (answer,) = watcher.query(promql)
            assert answer["metric"] == {"pod": "livery-0"} and float(answer["value"][1]) >= 0


def test_it_writes_nowhere_but_on_its_volumes(pod: Pod) -> None:
    assert list(pod.home.iterdir()) == list((pod.home.parent / "work").iterdir()) == []


def test_it_drains_and_ends_within_the_grace_period(pod: Pod) -> None:
    """The last of this file: after it there is no server."""
    address = pod.url.removeprefix("http://").split(":")
    with pod.client() as client, socket.create_connection((address[0], int(address[1]))) as slow:
        # A request whose body isn't there yet is under way as long as this test likes.
        slow.sendall(f"POST /v1/completions HTTP/1.1\r\nhost: {address[0]}\r\n".encode())
        slow.sendall(f"authorization: Bearer {API_KEY}\r\ncontent-length: 2\r\n\r\n{{".encode())
        stream = client.completions.create(
            model="pirate", prompt="Once", max_tokens=64, stream=True, extra_body={"ignore_eos": True}
        )
        events = iter(stream)
        next(events)
        told = time.monotonic()
        pod.process.send_signal(signal.SIGTERM)
        while pod.probe("readiness"):
            pass
        assert pod.probe("liveness")  # else it would be killed in the middle of the drain
        late = httpx.get(f"{pod.url}/v1/models", headers={"authorization": f"Bearer {API_KEY}"}, timeout=30)
        assert late.status_code == 503
        assert [event.choices[0].finish_reason for event in events][-1] == "length"
        assert pod.process.poll() is None
        slow.sendall(b"}")
        assert slow.recv(9) == b"HTTP/1.1 "
    pause = int(pod.spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    status = pod.process.wait(pod.spec["terminationGracePeriodSeconds"] - pause - (time.monotonic() - told))
    assert status == 0, pod.log.read_text()[-3000:]
