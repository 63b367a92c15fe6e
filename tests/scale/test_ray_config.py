"""The arguments of an application on Ray Serve, and how its last words to a cut stream look."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from livery.refusals import ReplicaLost
from livery.scale.ray_config import aimed_at, busy_at, check_shared, data_path, most_ongoing, parse
from livery.scale.ray_exchange import Head
from livery.scale.ray_words import failed_event
from livery.settings import SettingsError

SHARED = {"model": "m", "registry": "postgresql://db/livery", "blob_store": "s3://bucket/x", "data": "/srv/{replica}"}
SSE = Head(200, ((b"content-type", b"text/event-stream"),))


def test_knobs_of_the_server_and_of_the_cluster_stand_beside_each_other() -> None:
    scale, settings = parse(
        {**SHARED, "replicas": "4", "max_running": "32", "num_gpus": 0.5}, {"LIVERY_MAX_OPEN": "99"}
    )
    assert (scale.replicas, scale.num_gpus, settings.max_running) == (4, 0.5, 32)
    assert (busy_at(scale, settings), most_ongoing(scale, settings), aimed_at(scale, settings)) == (8, 99, 16.0)
    assert data_path(parse({"model": "m"}, {"XDG_DATA_HOME": "/x"})[1]).name == "ray"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"replicas": 0}, "replicas is 0"),
        ({"replicas": "many"}, "replicas is 'many'"),
        ({"port": 8000}, "Ray Serve listens"),
        ({"admin_port": 9000}, "no admin API"),
        ({"api_workers": 2}, "a replica answers in one process"),
        ({"colour": "red"}, "no such argument"),
        ({"max_replicas": 2, "min_replicas": 3}, "below min_replicas"),
        ({"autoscaling": {"upscale_delay_s": 1}}, "without max_replicas"),
        ({"autoscaling": {"max_replicas": 1}, "max_replicas": 2}, "beside autoscaling"),
        ({"autoscaling": "quick", "max_replicas": 2}, "autoscaling is 'quick'"),
        ({"replicas": 2, "registry": None, "blob_store": None}, "one registry"),
        ({"replicas": 2, "blob_store": None}, "blob_store=s3://"),
        ({"blob_store": None}, "data /srv/{replica} gives each replica a folder of its own"),
        ({"blob_store": None}, "blob_store=s3://bucket/prefix"),
        ({"blob_store": None, "registry": None}, "registry=postgresql://... and blob_store=s3://bucket/prefix"),
        ({"blob_store": None, "registry": None}, "or give a data without {replica}"),
        ({"max_connections": 9}, "max_connections: Ray Serve listens here"),
        ({"keep_alive": 9}, "keep_alive: Ray Serve listens here"),
        ({"max_body": "4MiB"}, "max_body: Ray's ingress"),
        ({"adapters": "/srv/adapters"}, "leave {replica} out"),
        ({"blob_store": "ftp://x"}, "--blob-store"),
        ({"allow_source": ["ftp://x"]}, "--allow-source"),
        ({"model": None}, "--model is needed"),
    ],
)
def test_what_cannot_be_says_so(changed: dict[str, Any], says: str) -> None:
    args = {name: value for name, value in {**SHARED, **changed}.items() if value is not None}
    with pytest.raises(SettingsError) as caught:
        parse(args, {})
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "machines", "refused"),
    [
        ({}, 2, True),
        ({"replicas": 1, "max_replicas": 2}, 2, True),
        ({}, 1, False),
        ({"replicas": 1}, 2, True),
        ({"replicas": 1}, 1, False),
        ({"replicas": 1, "data": "/shared/livery"}, 2, False),
        ({"blob_store": "s3://bucket/x"}, 2, False),
        ({"data": "/shared/livery"}, 2, False),
    ],
)
def test_replicas_on_several_machines_share_adapter_files(
    changed: dict[str, Any], machines: int, refused: bool
) -> None:
    """Each machine's own folder is what they would be in otherwise; whoever replaces a replica may be on another."""
    scale, settings = parse({"model": "m", "registry": "postgresql://db/livery", "replicas": 2, **changed}, {})
    if not refused:
        return check_shared(scale, settings, machines)
    with pytest.raises(SettingsError, match=r"2 machines.*blob_store=s3://"):
        check_shared(scale, settings, machines)


def test_what_one_replica_keeps_is_not_left_on_one_of_several_machines() -> None:
    scale, settings = parse({"model": "m"}, {})
    check_shared(scale, settings, 1)
    with pytest.raises(
        SettingsError, match=r"2 machines, and adapters and keys .* registry=postgresql://.* blob_store="
    ):
        check_shared(scale, settings, 2)


def test_an_admin_api_is_refused_wherever_it_was_asked_for() -> None:
    parse(SHARED, {"LIVERY_HOST": "0.0.0.0", "LIVERY_PORT": "8000"})  # as an image has them
    with pytest.raises(SettingsError, match=r"^admin_port: there is no admin API"):
        parse(SHARED, {"LIVERY_ADMIN_PORT": "9000"})


def told(path: str, head: Head = SSE) -> tuple[bytes, dict[str, Any]]:
    event = failed_event(ReplicaLost(), head, path)
    assert event is not None
    name, _, data = event.rpartition(b"data: ")
    return name, orjson.loads(data)


def test_a_cut_stream_ends_in_the_words_of_its_route() -> None:
    name, data = told("/v1/chat/completions")
    assert (name, data["error"]["code"]) == (b"", "replica_lost")
    name, data = told("/v1/messages")
    assert (name, data["type"], data["error"]["type"]) == (b"event: error\n", "error", "overloaded_error")
    name, data = told("/llm/v1/responses")
    assert (name, data["type"], data["code"]) == (b"event: error\n", "error", "replica_lost")
    assert failed_event(ReplicaLost(), Head(200, ()), "/v1/chat/completions") is None
