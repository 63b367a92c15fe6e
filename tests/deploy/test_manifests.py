"""What kustomize renders: known to Kubernetes field by field, and fitting together, the image and the server."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from conformance.environments import PartMissing, Suite
from deploy.custom_resources import faults, kind_of, schemas
from deploy.manifests import (
    KUBERNETES,
    OVERLAYS,
    ROOT,
    SETTINGS,
    Object,
    container,
    environment,
    image,
    kustomized,
    literals,
    parsed,
    rendered,
    the,
)
from foreign_parts import lacking
from livery.engine.vllm_args import parse_args
from livery.running.engines import check_knobs
from livery.variables import unread_variables
from livery_loadtest.peers import EnvironmentFailed

pytestmark = pytest.mark.deploy
VALIDATOR = "kubernetes-validate==1.37.0"
VERSIONS = ("1.31", "1.37")  # of Kubernetes: the oldest that has all the fields in its stable form, and the newest
# From the end of the drain to that of the process: the engine stops, what was used is written.
MARGIN_S = 15
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@pytest.fixture(scope="session")
def validator() -> Path:
    """kubernetes-validate in an environment of its own. Skips where it can't be had, fails with CI=true."""
    suite = Suite("kubernetes-validate", "", "", python=(VALIDATOR,))
    try:
        suite.ensure(Console(stderr=True))
    except (PartMissing, EnvironmentFailed) as missing:
        lacking(f"{VALIDATOR} can't be had: {missing}")
    return suite.folder / "bin" / "kubernetes-validate"


def refused(validator: Path, objects: list[Object], folder: Path) -> str:
    """What is wrong with objects, by Kubernetes' own schemas and those of custom_resources.yaml; "": nothing."""
    custom = schemas()
    said = [fault for one in objects if kind_of(one) in custom for fault in faults(one, custom[kind_of(one)])]
    files = []
    for number, one in enumerate(one for one in objects if kind_of(one) not in custom):
        files.append(folder / f"{number}.yaml")
        files[-1].write_text(yaml.safe_dump(one))
    if files:
        versions = [word for version in VERSIONS for word in ("-k", version)]
        command = [str(validator), "--strict", "--quiet", *versions, *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        said.append(done.stdout + done.stderr)  # a kind that it doesn't know is a warning to it, and status 0
        assert said[-1] or not done.returncode
    return "\n".join(filter(None, said))


@each_overlay
def test_kubernetes_knows_every_field(overlay: str, validator: Path, tmp_path: Path) -> None:
    assert refused(validator, rendered(overlay), tmp_path) == ""


FAULTS: dict[str, tuple[str, str, Callable[[Object], object]]] = {
    "field": ("Deployment", "livery", lambda one: one["spec"].update(replica=2)),
    "field far within": ("Deployment", "livery", lambda one: one["spec"]["template"]["spec"].update(hostIpc=True)),
    "kind": ("Deployment", "livery", lambda one: one.update(kind="Deploymint")),
    "version": ("HorizontalPodAutoscaler", "livery", lambda one: one.update(apiVersion="autoscaling/v2beta9")),
    "custom kind": ("ServiceMonitor", "livery", lambda one: one.update(kind="ServiceMonitors")),
    "monitor": ("ServiceMonitor", "livery", lambda one: one["spec"]["endpoints"][0].update(schema="https")),
    "rule": ("PrometheusRule", "livery", lambda one: one["spec"]["groups"][0]["rules"][0].pop("expr")),
    "pool": ("InferencePool", "livery", lambda one: one["spec"].update(targetPortNumber=8000)),
    "weight": ("InferenceModelRewrite", "support", lambda one: one["spec"]["rules"][0]["targets"][0].update(weight=0)),
    "objective": ("InferenceObjective", "batch", lambda one: one["spec"].update(criticality="Sheddable")),
    "route": ("HTTPRoute", "livery", lambda one: one["spec"]["rules"][0].update(timeouts={"request": "600"})),
    "method": ("HTTPRoute", "livery", lambda one: one["spec"]["rules"][0]["matches"][-1].update(method="get")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, validator: Path, tmp_path: Path) -> None:
    kind, name, plant = FAULTS[fault]
    one = yaml.safe_load(yaml.safe_dump(the(rendered("gateway"), kind, name)))
    assert refused(validator, [one], tmp_path) == ""
    plant(one)
    assert refused(validator, [one], tmp_path) != ""


@each_overlay
def test_the_server_takes_its_arguments_and_variables(overlay: str) -> None:
    objects = rendered(overlay)
    deployment = the(objects, "Deployment")
    settings = the(objects, "ConfigMap", SETTINGS)["data"]
    assert settings == literals(KUBERNETES / "overlays" / overlay)  # how tests without kustomize read them
    found = container(deployment)
    environ = environment(found, settings)
    assert not list(unread_variables(environ))
    told = parsed(found["args"], environ)
    ports = {port["name"]: port["containerPort"] for port in found["ports"]}
    assert ports == {"http": told.port}
    mounts = {mount["mountPath"]: mount for mount in found["volumeMounts"]}
    check_knobs(told)
    vllm = told.engine == "vllm"
    assert {str(told.data), str(told.adapters), "/tmp", *(["/dev/shm"] if vllm else [])} == set(mounts)
    for name in ("LIVERY_CACHE", "HF_HOME", "TRITON_CACHE_DIR", *(["HOME"] if vllm else [])):
        assert environ[name].startswith(f"{told.data}/"), name
    gpus = found["resources"]["limits"].get("nvidia.com/gpu")
    shared = parse_args(told.vllm_arg, {"tensor_parallel_size"}).get("tensor_parallel_size", 1)
    assert gpus in (None, str(shared)), "as many as share the model"
    assert told.api_key is not None and told.metrics_key is not None
    pod = deployment["spec"]["template"]["spec"]
    pause = int(found["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= pause + told.drain_timeout + MARGIN_S
    assert pod["enableServiceLinks"] is False  # a Service's variables begin as ours do
    restricted = found["securityContext"]
    assert restricted["readOnlyRootFilesystem"] and not restricted["allowPrivilegeEscalation"]
    assert pod["securityContext"]["runAsNonRoot"] and str(pod["securityContext"]["runAsUser"]) == image().user


@each_overlay
def test_what_is_referred_to_is_there(overlay: str) -> None:
    objects = rendered(overlay)
    deployment, service = the(objects, "Deployment"), the(objects, "Service")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        the(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        the(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    names = {(one["kind"], one["metadata"]["name"]) for one in objects}
    for one in objects:
        for kind, name in references(one):
            assert (kind, name) in names, (overlay, one["kind"], kind, name)
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] in {port["name"] for port in container(deployment)["ports"]}


def references(one: Object) -> Iterator[tuple[str, str]]:
    """Objects of the same overlay that one names."""
    pod = one["spec"]["template"]["spec"] if one["kind"] == "Deployment" else {}
    if pod:
        yield "ServiceAccount", pod["serviceAccountName"]
    for volume in pod.get("volumes", ()):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
        assert len(volume) == 2, volume  # a name and one source: patches that merge leave two
    for source in container(one).get("envFrom", ()) if pod else ():
        yield "ConfigMap", source["configMapRef"]["name"]
    if one["kind"] == "HorizontalPodAutoscaler":
        yield "Deployment", one["spec"]["scaleTargetRef"]["name"]
    if one["kind"] == "RoleBinding":
        yield "Role", one["roleRef"]["name"]
        yield from (("ServiceAccount", subject["name"]) for subject in one["subjects"])
    if one["kind"] == "InferencePool":
        yield "Service", one["spec"]["endpointPickerRef"]["name"]
    if "poolRef" in one.get("spec", {}):
        yield "InferencePool", one["spec"]["poolRef"]["name"]
    if one["kind"] == "HTTPRoute":
        yield from ((ref["kind"], ref["name"]) for rule in one["spec"]["rules"] for ref in rule["backendRefs"])


@each_overlay
def test_no_secret_is_in_the_manifests(overlay: str) -> None:
    """Keys, tokens and URLs with passwords come from Secrets, which are made by hand."""
    objects = rendered(overlay)
    assert not [one for one in objects if one["kind"] == "Secret"]
    secret = re.compile(r".*(?<!WITHOUT)_KEY|.*_KEY_ID|.*_TOKEN|.*REGISTRY")
    written = [name for one in objects if one["kind"] == "ConfigMap" for name in one["data"]]
    variables = container(the(objects, "Deployment"))["env"]
    written += [variable["name"] for variable in variables if "value" in variable]
    assert not [name for name in written if secret.fullmatch(name)]
    assert [variable["name"] for variable in variables if secret.fullmatch(variable["name"])]


@each_overlay
def test_upgrades_leave_no_gap_unless_one_volume_forbids(overlay: str) -> None:
    objects = rendered(overlay)
    strategy = the(objects, "Deployment")["spec"]["strategy"]
    claims = [one for one in objects if one["kind"] == "PersistentVolumeClaim"]
    if any(one["spec"]["accessModes"] == ["ReadWriteOnce"] for one in claims):
        assert strategy == {"type": "Recreate"}
        assert the(objects, "Deployment")["spec"]["replicas"] == 1
    else:
        assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def test_the_autoscaler_alone_says_how_many_there_are() -> None:
    for overlay in OVERLAYS:
        objects = rendered(overlay)
        scaled = any(one["kind"] == "HorizontalPodAutoscaler" for one in objects)
        assert ("replicas" in the(objects, "Deployment")["spec"]) is not scaled


def test_the_picker_reads_the_configuration_that_it_is_given() -> None:
    objects = rendered("gateway")
    picker = the(objects, "Deployment", "livery-picker")
    told = dict(arg.removeprefix("--").split("=", 1) for arg in container(picker)["args"])
    folder, file = told["config-file"].rsplit("/", 1)
    (mount,) = container(picker)["volumeMounts"]
    assert mount["mountPath"] == folder
    config = yaml.safe_load(the(objects, "ConfigMap", "livery-picker")["data"][file])
    plugins = {plugin["type"] for plugin in config["plugins"]}
    assert plugins == {one["pluginRef"] for profile in config["schedulingProfiles"] for one in profile["plugins"]}
    assert "lora-affinity-scorer" in plugins
    pool = the(objects, "InferencePool")
    assert told["pool-name"] == pool["metadata"]["name"]
    assert int(told["grpc-port"]) == pool["spec"]["endpointPickerRef"]["port"]["number"]
    assert pool["spec"]["targetPorts"] == [
        {"number": container(the(objects, "Deployment"))["ports"][0]["containerPort"]}
    ]


def test_the_readmes_overlay_of_ones_own_builds(tmp_path: Path) -> None:
    text = (KUBERNETES.parent / "README.md").read_text()
    found = re.search(r"```yaml\n(.*?kind: Kustomization.*?)```", text, re.DOTALL)
    assert found is not None
    here = os.path.relpath(ROOT, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(found[1].replace("../livery/", f"{here}/"))
    objects = list(yaml.safe_load_all(kustomized(tmp_path)))
    assert container(the(objects, "Deployment"))["image"] == "registry.example/livery:cpu"
    settings = the(objects, "ConfigMap", SETTINGS)["data"]
    assert settings == literals(tmp_path)
    assert settings.keys() > literals(KUBERNETES / "overlays" / "cpu-demo").keys()
    assert not list(unread_variables(settings))


def test_every_folder_is_built_by_an_overlay() -> None:
    """Nothing lies there that no check looks at."""
    for file in KUBERNETES.rglob("*.yaml"):
        assert file.parent.name in {"kubernetes", "base", "monitoring", "autoscaling", "gpu", "vllm", *OVERLAYS}, file
    for overlay in OVERLAYS:
        assert kustomized(KUBERNETES / "overlays" / overlay)
