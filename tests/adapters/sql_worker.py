"""What other processes do to a registry in the tests, and how to start one quickly."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
from multiprocessing.connection import Connection
from pathlib import Path

from adapters.sql_facts import facts_of
from livery_adapters.backup import restore
from livery_adapters.registry import AdapterRecord, GenerationMismatch, NamedVersion, Registry, RegistryError

# Children are forked from a process that has imported everything and runs no thread.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    ["adapters.sql_worker", "sqlalchemy.dialects.sqlite", "sqlalchemy.dialects.postgresql"]
)

Standing = tuple[AdapterRecord | None, tuple[NamedVersion, ...]]

NAMES = ("pirate", "corsair", "privateer")
LABELS = ("one", "two", "three", "four")


def restore_and_die(in_dir: Path, database: Path, blobs_root: Path, when: str) -> None:
    """End without a word after the first blob was copied ("blob"), or before the rows are written ("rows")."""

    def copied(_done: int, _total: int) -> None:
        if when == "blob":
            os._exit(9)

    def beside() -> None:
        os._exit(9)

    restore(in_dir, database, blobs_root, copied, beside)


def count_up(url: str, worker: int, times: int) -> None:
    """Raise one name's generation `times` times, each time by a compare-and-set that no other process disturbed."""
    registry = Registry.open(url)
    for turn in range(times):
        while True:
            record = registry.find("counter")
            generation = record.generation if record else 0
            label = f"{worker}/{turn}/{generation}"
            try:
                registry.put("counter", facts_of(label), source="api", origin=label, expected_generation=generation)
            except GenerationMismatch:
                continue
            break
        registry.put(f"own{worker}", facts_of(f"{worker}/{turn}"), source="api", origin="")
    registry.close()


def open_once(url: str) -> None:
    Registry.open(url).close()


def change_for_ever(url: str, seed: int, acknowledge: Connection) -> None:
    """One random change after the other. Says before each what it will touch, and after it how the name stands."""
    choose = random.Random(seed)
    registry = Registry.open(url)
    while True:
        name = choose.choice(NAMES)
        acknowledge.send(("begins", name, None))
        with contextlib.suppress(RegistryError):  # refused, so nothing may have changed
            _change(registry, name, choose)
        acknowledge.send(("done", name, standing(registry, name)))


def standing(registry: Registry, name: str) -> Standing:
    """All there is about a name."""
    record = registry.find(name, include_retired=True)
    if record is None or record.state == "retired":
        return record, ()
    return record, registry.versions(name)


def _change(registry: Registry, name: str, choose: random.Random) -> None:
    match choose.choice(["put", "put", "put", "activate", "rollback", "retire", "pin", "profile"]):
        case "put":
            registry.put(name, facts_of(choose.choice(LABELS)), source="api", origin="")
        case "activate":
            registry.activate(name, str(choose.randint(1, 4)))
        case "rollback":
            registry.rollback(name)
        case "retire":
            registry.retire(name)
        case "pin":
            registry.pin(name, choose.random() < 0.5)
        case "profile":
            registry.set_profile(name, {"seed": choose.randint(0, 2)})
