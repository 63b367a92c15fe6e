"""Ten thousand adapters: a page costs one query and what it shows, whatever else is there."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, event

from adapters.sql_facts import facts_of, fill
from livery_adapters.registry import AliasTarget, Registry

COUNT = 10_000


@pytest.fixture
def full(new_url: Callable[[], str]) -> Iterator[Registry]:
    """A registry of COUNT adapters, one version each, filled by three statements."""
    registry = Registry.open(new_url())
    fill(registry, COUNT)
    yield registry
    registry.close()


@contextmanager
def statements() -> Iterator[list[str]]:
    """What is sent to databases meanwhile, beside the beginning of transactions."""
    seen: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        if not statement.startswith(("BEGIN", "SET LOCAL", "SELECT pg_advisory")):
            seen.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


def test_a_page_is_one_query_and_holds_no_more_than_it_shows(full: Registry) -> None:
    full.page()  # what is cached once
    tracemalloc.start()
    with statements() as seen:
        page = full.page("adapter-04999", 100, state="ready", source="api", search="-0")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(seen) == 1
    assert [record.name for record in page.records] == [f"adapter-{number:05}" for number in range(5000, 5100)]
    assert page.next_after == "adapter-05099"
    assert peak < 100 * 20_000  # bytes; all of them would take ten times that
    assert full.count() == COUNT

    names: list[str] = []
    after: str | None = ""
    while after is not None:
        page = full.page(after, 1000)
        names += [record.name for record in page.records]
        after = page.next_after
    assert names == [f"adapter-{number:05}" for number in range(COUNT)]


def test_what_servers_ask_all_the_time_is_one_query(full: Registry) -> None:
    seen_changes, _ = full.changes(-1)
    full.set_alias("crew", [AliasTarget("adapter-00001")], "none")
    asked: list[Callable[[], object]] = [
        lambda: full.find("adapter-07777"),
        lambda: full.find_alias("crew"),
        lambda: full.version("adapter-07777", "1"),
        lambda: full.changes(seen_changes),
        lambda: full.changes(seen_changes + 1),
        lambda: full.names_serving([facts_of("adapter-00042").weights]),
        lambda: full.aliases(),
    ]
    for ask in asked:
        with statements() as seen:
            ask()
        assert len(seen) == 1, seen
