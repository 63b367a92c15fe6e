"""The manifests of server/deploy/kubernetes as its tests read them: as files, and as kustomize renders them."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main
import yaml

from foreign_parts import lacking
from livery.cli import app
from livery.settings import Settings, load_settings

ROOT = Path(__file__).parent.parent.parent
KUBERNETES = ROOT / "server" / "deploy" / "kubernetes"
OVERLAYS = sorted(folder.name for folder in (KUBERNETES / "overlays").iterdir())
BASE = KUBERNETES / "base"
SETTINGS = "livery-settings"
# What secrets are stood in for by, where not by a word: a value of the right form.
SECRETS = {"url": "postgresql://livery@postgres/livery"}
NO_RENDERER = (
    "neither kubectl (1.27 or newer) nor kustomize (5 or newer) is here: https://kubernetes.io/docs/tasks/tools"
)
Object = dict[str, Any]


def read(file: Path) -> list[Object]:
    return [one for one in yaml.safe_load_all(file.read_text()) if one]


def the(objects: Iterable[Object], kind: str, name: str = "livery") -> Object:
    """The one object of a kind and name; names that kustomize made end with a digest."""
    found = [one for one in objects if one["kind"] == kind and re.sub(r"-\w{10}$", "", one["metadata"]["name"]) == name]
    assert len(found) == 1, (kind, name, [(one["kind"], one["metadata"]["name"]) for one in objects])
    return found[0]


@functools.cache
def rendered(overlay: str) -> list[Object]:
    """All objects of an overlay, as `kubectl apply -k` sends them. Skips without kubectl, fails with CI=true."""
    return list(yaml.safe_load_all(kustomized(KUBERNETES / "overlays" / overlay)))


def kustomized(folder: Path) -> str:
    command = renderer()
    if command is None:
        lacking(NO_RENDERER)
    done = subprocess.run([*command, str(folder)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def renderer() -> list[str] | None:
    """The command that renders a folder, where there is one."""
    commands = (["kubectl", "kustomize"], ["kustomize", "build"])
    return next((command for command in commands if shutil.which(command[0])), None)


def literals(folder: Path, generator: str = SETTINGS) -> dict[str, str]:
    """What a kustomization puts into a generated map, read from the files: resources, then components, then its own."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    found: dict[str, str] = {}
    for part in (*kustomization.get("resources", ()), *kustomization.get("components", ())):
        if (folder / part).is_dir():
            found |= literals((folder / part).resolve(), generator)
    for made in kustomization.get("configMapGenerator", ()):
        if made["name"] == generator:
            found |= dict(pair.split("=", 1) for pair in made["literals"])
    return found


@dataclass(frozen=True)
class Image:
    """What a container of the image has without being told."""

    environ: Mapping[str, str]
    user: str
    ports: tuple[str, ...]
    entrypoint: tuple[str, ...]
    healthcheck: tuple[str, ...]
    text: str


def image() -> Image:
    """The Dockerfile, as far as manifests rely on it."""
    text = (ROOT / "Dockerfile").read_text()
    lines = text.replace("\\\n", " ").splitlines()
    said: dict[str, list[str]] = {}
    for line in lines:
        word, _, rest = line.partition(" ")
        said.setdefault(word, []).append(rest)
    environ = dict(pair.split("=", 1) for line in said["ENV"] for pair in shlex.split(line))
    return Image(
        environ=environ,
        user=said["USER"][-1],
        ports=tuple(said["EXPOSE"]),
        entrypoint=tuple(yaml.safe_load(said["ENTRYPOINT"][-1])),
        healthcheck=tuple(yaml.safe_load(said["HEALTHCHECK"][-1].partition("CMD ")[2])),
        text=text,
    )


def container(deployment: Object) -> Object:
    (found,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(found)


def environment(container: Object, settings: Mapping[str, str]) -> dict[str, str]:
    """What a container's process finds in its environment; a word stands in for each secret."""
    found = dict(image().environ) | dict(settings)
    for variable in container.get("env", ()):
        source = variable.get("valueFrom", {})
        if "value" in variable:
            found[variable["name"]] = variable["value"]
        elif "secretKeyRef" in source:
            found[variable["name"]] = SECRETS.get(source["secretKeyRef"]["key"], f"of {source['secretKeyRef']['key']}")
        else:
            raise AssertionError(variable)
    return found


def parsed(args: list[str], environ: Mapping[str, str]) -> Settings:
    """The settings that `livery serve` would run with, by the command line's own parser."""
    serve = typer.main.get_command(app).get_command(None, "serve")  # type: ignore[attr-defined]
    with serve.make_context("serve", list(args)) as context:
        options = {name: None if value == () else value for name, value in context.params.items()}  # as Typer does
    assert options.pop("config") is None
    return load_settings(options, environ)
