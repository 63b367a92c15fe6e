"""The tests of what is kept in SQL, on PostgreSQL: `new_url` gives a database there instead of a file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from foreign_parts import lacking
from livery.tenancy import TenantStore
from livery_adapters.registry import Registry
from postgres.server import MISSING, programs, running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker("postgres")


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    binaries = programs()
    if binaries is None:
        lacking(MISSING)
    with running(binaries) as url:
        yield url


@pytest.fixture(scope="session")
def schemas() -> Iterator[int]:
    return itertools.count(1)


@pytest.fixture
def new_url(server: str, schemas: Iterator[int]) -> Callable[[], str]:
    """Gives the URL of another empty schema with each call, which is quicker than a database."""

    def new() -> str:
        name = f"registry{next(schemas)}"
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {name}")
        return f"{server}&options=-csearch_path%3D{name}"

    return new


@pytest.fixture
def registry(new_url: Callable[[], str]) -> Iterator[Registry]:
    registry = Registry.open(new_url(), reserved={"base"})
    yield registry
    registry.close()


@pytest.fixture
def store(new_url: Callable[[], str]) -> Iterator[TenantStore]:
    store = TenantStore.open(new_url())
    yield store
    store.close()
