"""What an application of Livery on Ray Serve is told: the knobs of `livery serve`, and how many replicas are to be.

    applications:
      - import_path: livery.scale.ray_app:app
        args: {model: smollm2-135m-instruct, registry: "postgresql://...", blob_store: "s3://...", max_replicas: 8}

Knows no Ray.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from livery.running.parts import allowed_sources, shared_blobs
from livery.scale.ray_routing import FEW
from livery.settings import Settings, SettingsError, load_settings, usual_data_folder

SLOT = "{replica}"  # in a data folder's path: the number of the replica on its machine
RAYS_OWN = ("host", "port", "uds", "address_file", "ssl_certfile", "ssl_keyfile", "max_connections", "keep_alive")
OURS = ("min_replicas", "max_replicas", "target_ongoing_requests")
NOT_THERE = ("admin_port", "admin_host", "admin_uds", "admin_key")


class Scale(BaseModel):
    """How many replicas, and what each takes; beside these stand the knobs of `livery serve`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replicas: int = Field(1, ge=1, description="Replicas, where they aren't scaled")
    min_replicas: int = Field(1, ge=0, description="Fewest replicas that autoscaling leaves")
    max_replicas: int | None = Field(None, ge=1, description="Most replicas; given, Ray scales them by requests")
    target_ongoing_requests: float = Field(0, ge=0, description="Requests per replica aimed at; 0: half of max_running")
    autoscaling: dict[str, Any] = Field(
        default_factory=dict,
        description="Ray's further autoscaling settings by their names: upscale_delay_s, downscale_delay_s and others",
    )
    busy_requests: int = Field(
        0,
        ge=0,
        description="Requests under way up to which no replica is busy; with more, one is that has 1.25 times an even "
        f"share, and another is asked; 0: {FEW}, or max_running where that is less",
    )
    max_ongoing_requests: int = Field(0, ge=0, description="Most requests under way on a replica; 0: max_open")
    max_queued_requests: int = Field(1024, ge=-1, description="Requests that may wait while all replicas have the most")
    ingress_replicas: int = Field(1, ge=1, description="Processes that pass requests on")
    num_cpus: float = Field(1.0, ge=0, description="CPUs that Ray sets aside for a replica")
    num_gpus: float = Field(0.0, ge=0, description="GPUs that Ray sets aside for a replica")
    replica_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="First port of this machine on which its replicas answer themselves, /metrics too; 0: on none",
    )
    replica_host: str = Field("127.0.0.1", min_length=1, description="Address of those ports")

    @property
    def most_replicas(self) -> int:
        return self.max_replicas or self.replicas


def parse(args: Mapping[str, object], environ: Mapping[str, str]) -> tuple[Scale, Settings]:
    """The two parts of an application's arguments. Raises SettingsError."""
    known = {name: value for name, value in args.items() if name in Scale.model_fields}
    rest = {name: value for name, value in args.items() if name not in Scale.model_fields}
    try:
        scale = Scale.model_validate(known)
    except ValidationError as error:
        issue = error.errors()[0]
        name = str(issue["loc"][0])
        raise SettingsError(
            f"{name} is {issue['input']!r}: {issue['msg']}. {Scale.model_fields[name].description}"
        ) from None
    settings = load_settings(rest, environ)
    _check(scale, rest, settings)
    return scale, settings


def _check(scale: Scale, given: Mapping[str, object], settings: Settings) -> None:
    for name in RAYS_OWN:  # as arguments: in the environment an image may have them, for who runs it without Ray
        if name in given:
            raise SettingsError(f"{name}: Ray Serve listens here, not Livery; say it in its http_options")
    if settings.max_body != Settings.model_fields["max_body"].default:
        raise SettingsError("max_body: Ray's ingress reads bodies before it knows a replica's limit; leave it out")
    for name in given:
        if name not in Settings.model_fields:
            raise SettingsError(f"{name}: there is no such argument; `livery serve --help` and Scale list them")
    for name in NOT_THERE:
        if name in given or getattr(settings, name) != Settings.model_fields[name].default:
            raise SettingsError(
                f"{name}: there is no admin API under Ray Serve; `livery tenants` and `livery keys` take --registry"
            )
    if settings.api_workers > 1:
        raise SettingsError(
            f"api_workers is {settings.api_workers}, and under Ray Serve a replica answers in one process; leave it "
            "out and have more replicas, or more of ingress_replicas"
        )
    _check_scaling(scale)
    if scale.most_replicas > 1 and settings.registry is None:
        raise SettingsError(
            f"{scale.most_replicas} replicas need one registry: registry=postgresql://..., or replicas=1"
        )
    if SLOT in str(data_path(settings)):
        _check_own_folders(settings)
    shared_blobs(settings)
    allowed_sources(settings)


def _check_own_folders(settings: Settings) -> None:
    """Raise SettingsError for what would be lost with a replica's own folder, or be in one of them alone.

    One replica isn't one folder: whoever replaces it starts beside it, in the next one.
    """
    outside = {"registry=postgresql://...": settings.registry, "blob_store=s3://bucket/prefix": settings.blob_store}
    missing = " and ".join(argument for argument, value in outside.items() if value is None)
    if missing:
        raise SettingsError(
            f"data {settings.data} gives each replica a folder of its own, and whoever replaces a replica begins with "
            f"an empty one, without its adapters and keys: share them by {missing}, or give a data without {SLOT} that "
            "all replicas see"
        )
    if settings.adapters is not None:
        raise SettingsError(
            f"adapters {settings.adapters} is followed by one replica of a data folder, and {settings.data} gives each "
            f"its own; leave {SLOT} out, or add adapters by the API"
        )


def _check_scaling(scale: Scale) -> None:
    if scale.max_replicas is not None and scale.max_replicas < scale.min_replicas:
        raise SettingsError(f"max_replicas {scale.max_replicas} is below min_replicas {scale.min_replicas}")
    if scale.autoscaling and scale.max_replicas is None:
        raise SettingsError("autoscaling: without max_replicas nothing is scaled; give it, or leave autoscaling out")
    for name in OURS:
        if name in scale.autoscaling:
            raise SettingsError(f"autoscaling.{name}: it stands beside autoscaling, not in it")


def check_shared(scale: Scale, settings: Settings, machines: int) -> None:
    """Raise SettingsError where replicas on so many machines, one after the other too, wouldn't have the same files."""
    if machines > 1 and settings.blob_store is None and settings.data is None:
        what = "adapter files are" if settings.registry else "adapters and keys are"
        registry = "" if settings.registry else "registry=postgresql://... and "
        raise SettingsError(
            f"{'replicas' if scale.most_replicas > 1 else 'a replica, and whoever replaces it,'} may be on {machines} "
            f"machines, and {what} in {data_path(settings)}, which each machine has of its own: share them by "
            f"{registry}blob_store=s3://bucket/prefix, or by data=PATH, a folder that all machines see"
        )


def data_path(settings: Settings) -> Path:
    """Where replicas keep their copies: one folder per machine unless told otherwise."""
    return settings.data or usual_data_folder().with_name("ray")


def busy_at(scale: Scale, settings: Settings) -> int:
    """Requests under way up to which no replica is busy: by default few, which it computes together."""
    return scale.busy_requests or min(FEW, settings.max_running)


def most_ongoing(scale: Scale, settings: Settings) -> int:
    """Most requests under way on a replica: by default as many as its server lets in, which shares them out fairly."""
    return scale.max_ongoing_requests or settings.max_open


def aimed_at(scale: Scale, settings: Settings) -> float:
    """Requests per replica that autoscaling aims at."""
    return scale.target_ongoing_requests or max(1.0, settings.max_running / 2)
