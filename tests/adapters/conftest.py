"""Databases for the tests of the registry (tests/postgres runs the same tests with others), folders and adapters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters.peft_made import make
from adapters.scene import Scene
from livery_adapters.registry import Registry


@pytest.fixture
def new_url(tmp_path: Path) -> Callable[[], str]:
    """Gives the URL of another empty database with each call."""
    numbers = itertools.count(1)
    return lambda: f"sqlite:///{tmp_path}/registry{next(numbers)}.db"


@pytest.fixture
def registry(new_url: Callable[[], str]) -> Iterator[Registry]:
    registry = Registry.open(new_url(), reserved={"base"})
    yield registry
    registry.close()


@pytest.fixture
async def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.fixture(scope="module")
def pirate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pirate")
    make(folder, seed=1)
    return folder


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("newer")
    make(folder, seed=2, r=2)
    return folder


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three adapters that differ."""
    folders = [tmp_path_factory.mktemp(f"adapter-{seed}") for seed in range(3)]
    for seed, folder in enumerate(folders):
        make(folder, seed=seed)
    return folders
