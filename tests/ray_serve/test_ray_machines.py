"""Which machines of a cluster replicas may be on, and that they start only where all of these have the same files."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from livery.scale.ray_app import Replica, machines
from livery.scale.ray_config import Scale
from livery.settings import SettingsError
from ray_serve.cluster import Deployed


def node(address: str, alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "NodeManagerAddress": address, "Resources": {"memory": 1e9, **resources}}


def test_of_this_machine_there_is_one(deployed: Deployed) -> None:
    assert {"Alive", "NodeManagerAddress", "Resources"} <= ray.nodes()[0].keys()
    assert machines(Scale()) == 1
    assert machines(Scale(num_gpus=64)) == 0


async def test_a_replica_does_not_start_where_others_would_have_other_files(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [node("10.0.0.1"), node("10.0.0.2", CPU=8.0), node("10.0.0.2", CPU=8.0), node("10.0.0.3", False, CPU=8.0)]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert (machines(Scale()), machines(Scale(num_cpus=0)), machines(Scale(num_gpus=1))) == (1, 2, 0)
    nodes.append(node("10.0.0.4", CPU=4.0, GPU=1.0))
    assert (machines(Scale()), machines(Scale(num_gpus=1))) == (2, 1)
    args = {"model": "m", "registry": "postgresql://db/livery", "replicas": 2}
    with pytest.raises(SettingsError, match="2 machines"):
        await Replica.__init__(SimpleNamespace(), args)
