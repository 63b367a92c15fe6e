"""`livery data`: what is backed up is what is restored, and what can't be is said."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from adapters.object_stores import environment, moto, s3
from api.peft_files import make_adapter
from cli.conftest import Livery
from cli.folders import BASE, data_folder, two_adapters

__all__ = ["environment", "moto", "s3"]  # fixtures


@pytest.fixture
def data(tmp_path: Path, livery: Livery) -> Path:
    """Two versions of an adapter, rolled back, and an alias."""
    folder = data_folder(tmp_path / "data")
    for source in two_adapters(tmp_path / "made"):
        livery("adapters", "add", "pirate", source, "--data", folder)
    livery("adapters", "rollback", "pirate", "--data", folder)
    livery("adapters", "alias", "front", "pirate", "--data", folder)
    return folder


def test_a_restored_folder_is_the_one_backed_up(data: Path, tmp_path: Path, livery: Livery) -> None:
    out, new = tmp_path / "backup", tmp_path / "new"
    told = livery("data", "backup", out, "--data", data, "--json").json()
    counts = {"adapters": 1, "versions": 2, "blobs": 2, "tenants": 1, "keys": 0, "usage_rows": 0}
    assert told == {"directory": str(out), **counts, "hint": ""}
    assert "1 adapters, 2 versions" in livery("data", "restore", out, "--data", new).out
    for verb in (["ls"], ["versions", "pirate"], ["aliases"]):
        before, after = (livery("adapters", *verb, "--json", "--data", folder).json() for folder in (data, new))
        assert before == after
        assert before["data"]
    for version in ("1", "2"):
        for folder in (data, new):
            done = livery(
                "adapters",
                "export",
                "pirate",
                tmp_path / f"{folder.name}{version}",
                "--version",
                version,
                "--data",
                folder,
            )
            assert done.code == 0
        files = [(tmp_path / f"{name}{version}" / "adapter_model.safetensors").read_bytes() for name in ("data", "new")]
        assert files[0] == files[1]
    added = livery("adapters", "add", "more", tmp_path / "made" / "one", "--data", new)  # the base came along
    assert added.code == 0


def test_what_can_not_be_backed_up_or_restored_is_said(data: Path, tmp_path: Path, livery: Livery) -> None:
    out = tmp_path / "backup"
    assert livery("data", "backup", out, "--data", data).code == 0

    def said(*arguments: object) -> str:
        done = livery("data", *arguments)
        assert (done.code, done.out) == (1, ""), done
        return done.err

    assert "not empty" in said("backup", out, "--data", data)
    assert "not a folder" in said("backup", tmp_path / "new", "--data", tmp_path / "none")
    livery("adapters", "alias", "more", "pirate", "--data", data)
    assert "empty" in said("restore", out, "--data", data)
    assert "no whole backup" in said("restore", tmp_path / "none", "--data", tmp_path / "fresh")
    blob = next(file for file in (out / "blobs").rglob("adapter_model.safetensors"))
    blob.chmod(0o600)
    blob.write_bytes(blob.read_bytes()[:-1])
    assert "not what their digest says" in said("restore", out, "--data", tmp_path / "damaged")
    listed = livery("adapters", "ls", "--json", "--data", tmp_path / "damaged").json()
    assert listed["data"] == []
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in said("restore", out, "--data", tmp_path / "file")
    assert livery("data", "backup", out).code == 2


@pytest.mark.parametrize("step", ["livery.tenancy.backup.bring_in", "livery_adapters.backup.put"])
def test_a_restore_that_failed_between_tenants_and_adapters_is_done_again(
    data: Path, tmp_path: Path, livery: Livery, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """No adapter is there before the tenants that it may belong to."""
    out, new = tmp_path / "backup", tmp_path / "new"
    livery("tenants", "create", "acme", "--data", data)
    assert livery("data", "backup", out, "--data", data).code == 0

    def failing(*_: object) -> None:
        raise OSError(errno.EIO, "no more")

    with monkeypatch.context() as broken:
        broken.setattr(step, failing)
        assert livery("data", "restore", out, "--data", new).code == 1
    assert livery("adapters", "ls", "--data", new, "--json").json()["data"] == []
    for _ in range(2):
        told = livery("data", "restore", out, "--data", new, "--json").json()
        assert (told["adapters"], told["versions"], told["tenants"]) == (1, 2, 2)
    for verb in (("tenants", "ls"), ("adapters", "versions", "pirate")):
        before, after = (livery(*verb, "--json", "--data", folder).json() for folder in (data, new))
        assert before == after
    livery("tenants", "create", "zeta", "--data", new)
    refused = livery("data", "restore", out, "--data", new)
    assert (refused.code, "it has tenants" in refused.err) == (1, True), refused


def test_what_servers_share_is_backed_up_from_any_folder_and_restored_for_all(
    s3: Any, tmp_path: Path, livery: Livery
) -> None:
    """A folder that has a copy of nothing, as a server's is whose adapters another one took in."""
    s3.create_bucket(Bucket="other")
    registry = ("--registry", f"sqlite:///{tmp_path / 'shared.db'}")
    took, elsewhere = (
        data_folder(tmp_path / name, msgspec.structs.replace(BASE, blob_store="s3://bucket/livery"))
        for name in ("took", "elsewhere")
    )
    for source in two_adapters(tmp_path / "made"):
        assert livery("adapters", "add", "pirate", source, "--data", took, *registry).code == 0
    out, alone, new = tmp_path / "backup", tmp_path / "alone", tmp_path / "new"
    told = livery("data", "backup", out, "--data", elsewhere, *registry).out
    assert "2 versions, files of 2" in told
    assert "s3://bucket/livery" in told
    told = livery("data", "restore", out, "--data", alone).out
    assert "--blob-store" in told
    assert livery("data", "restore", out, "--data", alone, "--blob-store", "s3://other/alone").code == 0
    assert len(s3.list_objects_v2(Bucket="other", Prefix="alone/sha256/")["Contents"]) == 4
    into = ("--registry", f"sqlite:///{tmp_path / 'new.db'}", "--blob-store", "s3://other/new")
    assert "s3://other/new too" in livery("data", "restore", out, "--data", new, *into).out
    kept = s3.list_objects_v2(Bucket="other", Prefix="new/sha256/")["Contents"]
    job = data_folder(tmp_path / "job")  # which never heard of it but from the registry
    more = make_adapter(tmp_path / "more", seed=3)
    assert livery("adapters", "add", "more", more, "--data", job, *into[:2]).code == 0
    assert livery("adapters", "rm", "more", "--data", job, *into[:2]).code == 0
    assert len(s3.list_objects_v2(Bucket="other", Prefix="new/sha256/")["Contents"]) == 6
    shutil.rmtree(new / "adapters")
    again = livery("data", "backup", tmp_path / "again", "--data", new, *into[:2])
    assert again.code == 0, again.err
    s3.delete_object(Bucket="other", Key=kept[0]["Key"])
    refused = livery("data", "backup", tmp_path / "third", "--data", new, *into[:2])
    assert (refused.code, "s3://other/new" in refused.err) == (1, True), refused


def test_an_object_store_that_does_not_answer_ends_a_backup(
    data: Path, environment: pytest.MonkeyPatch, tmp_path: Path, livery: Livery
) -> None:
    environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    shutil.rmtree(data / "adapters" / "sha256")
    refused = livery("data", "backup", tmp_path / "out", "--data", data, "--blob-store", "s3://bucket/livery")
    assert (refused.code, "the object store must answer" in refused.err) == (1, True), refused
    bad = livery("data", "backup", tmp_path / "out", "--data", data, "--blob-store", "bucket")
    assert (bad.code, "s3://BUCKET/PREFIX" in bad.err) == (1, True), bad
