"""Databases for the tests of the registry; tests/postgres runs the same tests with others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
