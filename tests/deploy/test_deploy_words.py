"""What the files under server/deploy say of the server and of each other, without any tool of Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from fastapi import APIRouter
from starlette.routing import Route

from deploy.manifests import (
    BASE,
    KUBERNETES,
    OVERLAYS,
    ROOT,
    container,
    environment,
    image,
    literals,
    parsed,
    read,
    the,
)
from deploy.operator_rules import COMMAND, SOURCE, TARGET, operator_rules
from livery.api import status, usage
from livery.api.app import ROUTERS
from livery.settings import SettingsError
from livery.variables import unread_variables


def test_the_operators_rules_are_those_of_prometheus() -> None:
    assert TARGET.read_text() == operator_rules(), f"run: {COMMAND}"
    assert yaml.safe_load(TARGET.read_text())["spec"] == yaml.safe_load(SOURCE.read_text())


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_command_line_takes_what_the_manifests_say(overlay: str) -> None:
    found = container(the(read(BASE / "deployment.yaml"), "Deployment"))
    environ = environment(found, literals(KUBERNETES / "overlays" / overlay))
    assert not list(unread_variables(environ))
    told = parsed(found["args"], environ)
    assert (told.host, told.port, told.log_format) == ("0.0.0.0", 8000, "json")
    with pytest.raises(Exception, match="No such option: --drain-time"):
        parsed([*found["args"], "--drain-time", "60"], environ)
    with pytest.raises(SettingsError, match="LIVERY_MAX_OPEN"):
        parsed(found["args"], {**environ, "LIVERY_MAX_OPEN": "many"})
    assert len(list(unread_variables({**environ, "LIVERY_MAX_OPENED": "9"}))) == 1


def test_a_services_variable_would_be_taken_for_a_knob() -> None:
    """Why service links are off: Kubernetes sets NAME_PORT for every Service of a namespace."""
    with pytest.raises(SettingsError, match=r"LIVERY_PORT.*enableServiceLinks: false.*--port"):
        parsed([], {"LIVERY_MODEL": "m", "LIVERY_PORT": "tcp://10.96.0.7:8000"})


def test_the_image_is_what_the_manifests_take_it_for() -> None:
    pod = the(read(BASE / "deployment.yaml"), "Deployment")["spec"]["template"]["spec"]
    found, made = container(the(read(BASE / "deployment.yaml"), "Deployment")), image()
    assert made.entrypoint == ("livery", "serve") and "command" not in found
    assert str(pod["securityContext"]["runAsUser"]) == made.user
    assert made.ports == (str(found["ports"][0]["containerPort"]),)
    told = parsed([], {**made.environ, "LIVERY_MODEL": "m"})
    given = parsed(found["args"], {"LIVERY_MODEL": "m"})
    for knob in ("host", "port", "data", "adapters"):
        assert getattr(told, knob) == getattr(given, knob), knob
    volumes = [mount["mountPath"] for mount in found["volumeMounts"]]
    written = {one["name"]: one["value"] for one in found["env"] if "value" in one}
    assert all(value.startswith(tuple(volumes)) for value in written.values())
    assert written.items() <= made.environ.items(), "what is fetched or compiled stays on the image's volume, too"
    assert "VOLUME /data\n" in made.text
    extras = re.search(r'^ARG EXTRAS="(.*)"$', made.text, re.MULTILINE)
    assert extras is not None and "postgres" in extras[1].split(",")  # which the registry by URL needs
    assert 'pip install ".[${EXTRAS}]"' in made.text


NOT_MODELS = (usage.router, status.router)  # what each server says of itself: asked at the Service


def test_the_gateway_passes_on_what_asks_models_and_nothing_else() -> None:
    """Every route of the application is one or the other."""
    (route,) = read(KUBERNETES / "overlays" / "gateway" / "route.yaml")
    (rule,) = route["spec"]["rules"]
    asking = {
        (method, one.path)
        for router, purpose in ROUTERS
        if purpose == "ask" and router not in NOT_MODELS
        for one, method in of(router)
    }
    everything = {(method, one.path) for router, _ in ROUTERS for one, method in of(router)}
    assert {(method, path) for method, path in everything if passed_on(rule["matches"], method, path)} == asking


def test_the_gateway_is_told_to_speak_to_the_picker_as_that_listens() -> None:
    """With TLS on one side alone every call fails, which FailOpen hides: any replica, and no name rewritten."""
    overlay = KUBERNETES / "overlays" / "gateway"
    picker, service = (the(read(overlay / "picker.yaml"), kind, "livery-picker") for kind in ("Deployment", "Service"))
    told = dict(arg.removeprefix("--").split("=", 1) for arg in container(picker)["args"])
    (listening,) = [port for port in container(picker)["ports"] if port["name"] == "ext-proc"]
    assert listening["containerPort"] == int(told["grpc-port"])
    (port,) = [port for port in service["spec"]["ports"] if port["targetPort"] == "ext-proc"]
    secure = told.get("secure-serving", "true") == "true"  # the picker's own default
    assert port.get("appProtocol") == (None if secure else "kubernetes.io/h2c")
    assert port["name"].startswith("grpc-")  # by which Istio knows HTTP/2
    (pool,) = read(overlay / "pool.yaml")
    assert pool["spec"]["endpointPickerRef"]["port"]["number"] == port["port"]


def of(router: APIRouter) -> Iterator[tuple[Route, str]]:
    for one in router.routes:
        if isinstance(one, Route):
            yield from ((one, method) for method in one.methods or ())


def passed_on(matches: list[dict[str, Any]], method: str, path: str) -> bool:
    """As the Gateway API has it: exact, or by whole parts of the path, and by method where one is named."""
    path = re.sub(r"\{.*?\}", "acme/sql", path)
    for match in matches:
        value = match["path"]["value"]
        beginning = match["path"]["type"] == "PathPrefix" and path.startswith(f"{value}/")
        if (path == value or beginning) and match.get("method", method) == method:
            return True
    return False


def test_the_readmes_words_are_of_things_that_are_there() -> None:
    text = (KUBERNETES.parent / "README.md").read_text()
    for path in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (KUBERNETES.parent / path).exists(), path
    for folder in re.findall(r"kubernetes/[\w/.-]+\w", text):
        assert (KUBERNETES.parent / folder).exists(), folder
    for overlay in OVERLAYS:
        assert f"overlays/{overlay}" in text
    named = set(re.findall(r"\blivery-(?:keys|registry|object-store|hub)\b", text))
    secrets = {
        name
        for file in KUBERNETES.rglob("*.yaml")
        for name in re.findall(r"secretKeyRef: \{name: ([\w-]+)", file.read_text())
    }
    assert secrets == named
    assert "server/deploy/README.md" in (ROOT / "README.md").read_text()
