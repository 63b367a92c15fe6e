"""Backups come back as they were, from one kind of database to another, or are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.sql_facts import assert_consistent, facts_of
from adapters.sql_worker import processes, restore_and_die
from livery_adapters.backup import BackupError, Summary, backup, restore
from livery_adapters.registry import AdapterRecord, AliasTarget, NamedVersion, Registry, RegistryTooNew, migrations
from livery_adapters.store import BlobStore, StoreBusy


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def add_blob(blobs: BlobStore, label: str) -> str:
    """Two files that no adapter would have: a backup doesn't look inside."""
    folder = blobs.root.parent / f"files-{label}"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"label": label}))
    (folder / "adapter_model.safetensors").write_bytes(label.encode() * 1000)
    return blobs.put(folder)


@pytest.fixture
def full(registry: Registry, blobs: BlobStore) -> Registry:
    """Something of everything."""
    for name, label in (("pirate", "one"), ("pirate", "two"), ("corsair", "three"), ("gone", "four")):
        weights = add_blob(blobs, label)
        registry.put(name, replace(facts_of(label), weights=weights, digest=weights), source="folder", origin=label)
    registry.set_profile("pirate", {"temperature": 0.5})
    registry.rollback("pirate")
    registry.pin("pirate", True)
    registry.retire("gone")
    registry.fail("broken", code="incomplete", message="half there", source="api", origin="é")
    registry.set_alias("crew", [AliasTarget("pirate", 9), AliasTarget("corsair")], "user")
    return registry


def contents(registry: Registry) -> tuple[object, ...]:
    records = registry.page(include_retired=True).records
    return (
        records,
        [registry.versions(record.name) for record in records if record.state != "retired"],
        registry.aliases(),
    )


def test_a_backup_comes_back_as_it_was(
    full: Registry, blobs: BlobStore, tmp_path: Path, new_url: Callable[[], str]
) -> None:
    told: list[tuple[int, int]] = []
    summary = backup(full, blobs.root, tmp_path / "backup", lambda done, total: told.append((done, total)))
    assert summary == Summary(adapters=4, versions=4, blobs=3)
    assert told == [(1, 3), (2, 3), (3, 3)]
    # To a file, from there to the kind of database it came from.
    back, second_blobs = Registry.open(tmp_path / "copy.db"), tmp_path / "copied"
    back.close()
    assert restore(tmp_path / "backup", tmp_path / "copy.db", second_blobs) == summary
    back = Registry.open(tmp_path / "copy.db")
    assert contents(back) == contents(full)
    backup(back, second_blobs, tmp_path / "backup2")
    url = new_url()
    restore(tmp_path / "backup2", url, tmp_path / "copied2")
    again = Registry.open(url)
    assert contents(again) == contents(full)
    assert_consistent(again)
    assert again.changes(0)[1] == ("broken", "corsair", "gone", "pirate", "crew")
    for registry, root in ((back, second_blobs), (again, tmp_path / "copied2")):
        store = BlobStore(root)
        assert set(store.digests()) == full.weights_in_use()
        assert all(store.verify(digest) for digest in store.digests())
        # It goes on where it stopped: rollback, numbers, what the folder gave last.
        assert registry.rollback("pirate") is not None
        registry.close()


def test_rows_that_change_meanwhile_are_those_of_one_moment(full: Registry, blobs: BlobStore, tmp_path: Path) -> None:
    """A version that is retired and collected while blobs are copied makes the backup start over."""

    def interfere(done: int, total: int) -> None:
        if done == 1 and full.find("corsair"):
            full.retire("corsair")
            full.pin("pirate", False)
            full.trim(0)
            blobs.collect_garbage(full.weights_in_use, grace_s=0)

    backup(full, blobs.root, tmp_path / "backup", interfere)
    expected = contents(full)
    restore(tmp_path / "backup", tmp_path / "copy.db", tmp_path / "copied")
    back = Registry.open(tmp_path / "copy.db")
    assert contents(back) == expected
    assert set(BlobStore(tmp_path / "copied").digests()) == full.weights_in_use()
    back.close()


def test_a_backup_wants_an_empty_directory(full: Registry, blobs: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "mine").touch()
    with pytest.raises(BackupError, match="not empty"):
        backup(full, blobs.root, tmp_path / "backup")
    assert [path.name for path in (tmp_path / "backup").iterdir()] == ["mine"]


def test_a_blob_that_is_missing_or_damaged_is_named(full: Registry, blobs: BlobStore, tmp_path: Path) -> None:
    missing = active(full.get("corsair")).facts.weights
    shutil.rmtree(blobs.path(missing))
    with pytest.raises(BackupError, match=f"{missing}.*corsair"):
        backup(full, blobs.root, tmp_path / "backup")
    with pytest.raises(BackupError, match="no whole backup"):
        restore(tmp_path / "backup", tmp_path / "copy.db", tmp_path / "copied")


def active(record: AdapterRecord) -> NamedVersion:
    assert record.active is not None
    return record.active


def test_targets_must_be_empty(full: Registry, blobs: BlobStore, tmp_path: Path) -> None:
    backup(full, blobs.root, tmp_path / "backup")
    with pytest.raises(BackupError, match="empty folder"):
        restore(tmp_path / "backup", tmp_path / "copy.db", blobs.root)
    used = Registry.open(tmp_path / "used.db")
    used.fail("broken", code="incomplete", message="half there", source="api", origin="")
    before = contents(used)
    with pytest.raises(BackupError, match="new database"):
        restore(tmp_path / "backup", tmp_path / "used.db", tmp_path / "copied")
    assert contents(used) == before
    used.forget_failure("broken")  # its changes are still logged
    restore(tmp_path / "backup", tmp_path / "used.db", tmp_path / "copied")
    assert contents(used) == contents(full)
    used.close()


@pytest.mark.parametrize("when", ["blob", "rows"])
def test_a_restore_that_was_killed_is_gone_on_with(full: Registry, blobs: BlobStore, tmp_path: Path, when: str) -> None:
    summary = backup(full, blobs.root, tmp_path / "backup")
    target = tmp_path / "backup", tmp_path / "copy.db", tmp_path / "copied"
    child = processes.Process(target=restore_and_die, args=(*target, when))
    child.start()
    child.join()
    assert child.exitcode == 9
    assert len(BlobStore(tmp_path / "copied").digests()) == {"blob": 1, "rows": 3}[when]
    with pytest.raises(BackupError, match="empty folder"):
        restore(tmp_path / "backup", tmp_path / "another.db", tmp_path / "copied")
    for _ in range(2):  # what is there is as good as what comes
        assert restore(*target) == summary
    with closing(Registry.open(tmp_path / "copy.db")) as back:
        assert contents(back) == contents(full)
        assert set(BlobStore(tmp_path / "copied").digests()) == full.weights_in_use()
        back.set_alias("more", [AliasTarget("pirate")], "none")
        with pytest.raises(BackupError, match="new database"):
            restore(*target)
        assert back.alias("more")


def test_a_backup_is_only_read(full: Registry, blobs: BlobStore, tmp_path: Path) -> None:
    """It may lie on a medium that nobody can write to; its locks are none of its content."""
    backup(full, blobs.root, tmp_path / "backup")
    shutil.rmtree(tmp_path / "backup" / "blobs" / "incoming")
    (tmp_path / "backup" / "blobs" / "lock").unlink()
    folders = [tmp_path / "backup", *(path for path in (tmp_path / "backup").rglob("*") if path.is_dir())]
    before = sorted((tmp_path / "backup").rglob("*"))
    for folder in folders:
        folder.chmod(0o555)
    try:
        restore(tmp_path / "backup", tmp_path / "copy.db", tmp_path / "copied")
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert sorted((tmp_path / "backup").rglob("*")) == before
    assert set(BlobStore(tmp_path / "copied").digests()) == full.weights_in_use()


def rewrite(folder: Path, change: Callable[[list[str]], list[str]]) -> None:
    path = folder / "registry.jsonl"
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda lines: lines[:-1], "cut short"),
        (lambda lines: lines[:-2] + lines[-1:], "cut short"),
        (lambda lines: [*lines, "[]\n"], "cut short"),
        (lambda lines: [*lines[:2], lines[2][:-5] + "\n", *lines[3:]], "line 3"),
        (lambda lines: [*lines[:2], "[1, 2]\n", *lines[3:]], "cut short"),
        (lambda lines: [lines[0], '["users", {"name": "x"}]\n', *lines[2:]], "users"),
        (lambda lines: [lines[0], '["aliases", {"name": "x"}]\n', *lines[2:]], "fit together"),
        (lambda lines: [lines[0], lines[1], lines[1], *lines[3:]], "fit together"),
        (lambda lines: ["{}\n", *lines[1:]], "doesn't begin"),
        (lambda lines: [lines[0].replace("registry 1", "registry 2"), *lines[1:]], "registry 2"),
    ],
)
def test_a_backup_that_was_changed_is_refused(
    full: Registry, blobs: BlobStore, tmp_path: Path, change: Callable[[list[str]], list[str]], reason: str
) -> None:
    backup(full, blobs.root, tmp_path / "backup")
    rewrite(tmp_path / "backup", change)
    with pytest.raises(BackupError, match=reason):
        restore(tmp_path / "backup", tmp_path / "copy.db", tmp_path / "copied")
    assert not (tmp_path / "copy.db").exists()


def test_a_backup_of_a_newer_version_is_refused(full: Registry, blobs: BlobStore, tmp_path: Path) -> None:
    backup(full, blobs.root, tmp_path / "backup")
    newest = migrations.newest()
    rewrite(tmp_path / "backup", lambda lines: [lines[0].replace(newest, "9999"), *lines[1:]])
    with pytest.raises(RegistryTooNew, match="9999"):
        restore(tmp_path / "backup", tmp_path / "copy.db", tmp_path / "copied")


@pytest.mark.parametrize("damage", ["changed", "missing", "swapped"])
def test_blobs_that_are_not_what_their_digest_says_are_refused(
    full: Registry, blobs: BlobStore, tmp_path: Path, damage: str
) -> None:
    backup(full, blobs.root, tmp_path / "backup")
    copies = BlobStore(tmp_path / "backup" / "blobs")
    first, second, *_ = copies.digests()
    weights = copies.path(first) / "adapter_model.safetensors"
    weights.chmod(0o644)
    if damage == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    elif damage == "missing":
        weights.unlink()
    else:
        shutil.rmtree(copies.path(first))
        shutil.copytree(copies.path(second), copies.path(first))
    with pytest.raises(BackupError, match=first):
        restore(tmp_path / "backup", tmp_path / "copy.db", tmp_path / "copied")
    back = Registry.open(tmp_path / "copy.db")
    assert back.count(include_retired=True) == 0
    assert BlobStore(tmp_path / "copied").digests() == []
    back.close()


def test_a_restore_that_fails_takes_nothing_from_one_that_was_faster(
    full: Registry, blobs: BlobStore, tmp_path: Path
) -> None:
    """Both found the targets empty; the one that fails has copied nothing before the other was done."""
    backup(full, blobs.root, tmp_path / "backup")
    shutil.copytree(tmp_path / "backup", tmp_path / "damaged")
    damaged = BlobStore(tmp_path / "damaged" / "blobs")
    shutil.rmtree(damaged.path(damaged.digests()[0]))
    target = tmp_path / "copy.db", tmp_path / "copied"

    def restore_the_other(done: int, total: int) -> None:
        if done == 1:
            restore(tmp_path / "backup", *target)

    with pytest.raises(BackupError, match="missing or not what"):
        restore(tmp_path / "damaged", *target, restore_the_other)
    back = Registry.open(target[0])
    assert contents(back) == contents(full)
    assert set(BlobStore(target[1]).digests()) == full.weights_in_use()
    back.close()


def test_blobs_that_are_being_restored_are_nobodys_garbage(full: Registry, blobs: BlobStore, tmp_path: Path) -> None:
    backup(full, blobs.root, tmp_path / "backup")
    collected: list[int] = []

    def collect(done: int, total: int) -> None:
        with pytest.raises(StoreBusy):
            BlobStore(tmp_path / "copied").collect_garbage([], grace_s=0, timeout_s=0)
        collected.append(done)

    restore(tmp_path / "backup", tmp_path / "copy.db", tmp_path / "copied", collect)
    assert collected == [1, 2, 3]
    assert set(BlobStore(tmp_path / "copied").digests()) == full.weights_in_use()
