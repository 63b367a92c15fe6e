"""One cluster with two replicas of a tiny model, for all tests here."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from foreign_parts import lacking
from postgres.server import MISSING, programs

if TYPE_CHECKING:
    from ray_serve.cluster import Deployed

HAS_RAY = importlib.util.find_spec("ray") is not None
OF_RAY = [
    "test_ray_serve.py",
    "test_ray_uploads.py",
    "test_ray_config_file.py",
    "test_ray_machines.py",
    "test_ray_vllm.py",
    "test_ray_timelines.py",
]
collect_ignore = [] if HAS_RAY else OF_RAY  # make test-ray has it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker("ray")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from server.running import tiny_model

    return tiny_model(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Deployed]:
    if programs() is None:
        lacking(MISSING)
    from ray_serve.cluster import cluster

    with cluster(tmp_path_factory.mktemp("ray"), tiny, max_running=8) as deployed:
        deployed.wait_for_replicas(2)
        yield deployed
