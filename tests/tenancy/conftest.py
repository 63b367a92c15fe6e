"""Databases for the tests of tenants and keys; tests/postgres runs the same tests with others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from livery.tenancy import TenantStore


@pytest.fixture
def new_url(tmp_path: Path) -> Callable[[], str]:
    """Gives the URL of another empty database with each call."""
    numbers = itertools.count(1)
    return lambda: f"sqlite:///{tmp_path}/tenants{next(numbers)}.db"


@pytest.fixture
def store(new_url: Callable[[], str]) -> Iterator[TenantStore]:
    store = TenantStore.open(new_url())
    yield store
    store.close()
