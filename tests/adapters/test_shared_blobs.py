"""Adapter files that two servers share through an object store, over moto's S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import obstore
import pytest

from adapters.object_stores import environment, moto, s3
from adapters.peft_made import make
from adapters.sql_facts import facts_of
from livery_adapters.backup import backup
from livery_adapters.fetching import NetworkLimits, object_store
from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.registry import Registry
from livery_adapters.shared_blobs import UNREFERENCED_S, SharedBlobs
from livery_adapters.store import BlobStore
from livery_adapters.tensor_file import FILE_NAMES, WEIGHTS_NAME

__all__ = ["environment", "moto", "s3"]  # fixtures
QUICK = NetworkLimits(connect_s=5, stall_s=20, total_s=60, retries=0, backoff_s=0.01)
ABSENT = "ab" * 32


@pytest.fixture(params=["s3://bucket/team/livery", "s3://bucket"])
def shared(request: pytest.FixtureRequest, s3: Any) -> Iterator[SharedBlobs]:
    yield SharedBlobs(request.param, QUICK)


@pytest.fixture
def one(tmp_path: Path, shared: SharedBlobs) -> BlobStore:
    return BlobStore(tmp_path / "one", Limits(), shared)


@pytest.fixture
def two(tmp_path: Path, shared: SharedBlobs) -> BlobStore:
    return BlobStore(tmp_path / "two", Limits(), shared)


@pytest.fixture
def digest(tmp_path: Path, one: BlobStore) -> str:
    make(tmp_path / "pirate")
    return one.put(tmp_path / "pirate")


def objects(s3: Any) -> dict[str, Any]:
    return {entry["Key"]: entry for entry in s3.list_objects_v2(Bucket="bucket").get("Contents", ())}


def test_what_one_publishes_another_has_byte_by_byte(one: BlobStore, two: BlobStore, digest: str) -> None:
    assert not two.path(digest).exists()
    assert two.bring(digest)
    assert two.verify(digest)
    assert all((two.path(digest) / name).read_bytes() == (one.path(digest) / name).read_bytes() for name in FILE_NAMES)


def test_what_another_took_in_comes_whatever_is_taken_in_here(one: BlobStore, digest: str) -> None:
    small = BlobStore(one.root.parent / "small", Limits(max_weight_bytes=6), one.shared)
    assert small.bring(digest)
    with pytest.raises(AdapterRefused, match="--max-adapter-bytes"):
        small.put(one.path(digest))


@pytest.fixture
def busy(s3: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """After each part that is read, somebody takes the version in once more; keys in the order they were written."""
    monkeypatch.setattr(object_store, "_PART", 1000)
    written: list[str] = []

    get = obstore.get

    def read(store: object_store.ObjectStore, path: str, **how: Any) -> obstore.GetResult:
        got = get(store, path, **how)
        for key in objects(s3):
            write_anew(s3, key)
            written.append(key)
        return got

    monkeypatch.setattr(obstore, "get", read)
    return written


def write_anew(s3: Any, key: str) -> None:
    """The same bytes, and another tag: in parts, of which there is one."""
    where = {"Bucket": "bucket", "Key": key}
    body = s3.get_object(**where)["Body"].read()
    upload = {**where, "UploadId": s3.create_multipart_upload(**where)["UploadId"]}
    part = {"PartNumber": 1, "ETag": s3.upload_part(**upload, PartNumber=1, Body=body)["ETag"]}
    s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": [part]})


def test_what_is_taken_in_again_meanwhile_comes_all_the_same(
    busy: list[str], s3: Any, two: BlobStore, digest: str
) -> None:
    tags = {key: entry["ETag"] for key, entry in objects(s3).items()}
    assert two.bring(digest)
    assert two.verify(digest)
    assert len(busy) > 4
    assert all(entry["ETag"] != tags[key] for key, entry in objects(s3).items())


def test_a_backup_is_whole_that_was_made_while_a_version_was_taken_in_again(
    busy: list[str], shared: SharedBlobs, two: BlobStore, digest: str, tmp_path: Path
) -> None:
    with closing(Registry.open(tmp_path / "livery.db")) as registry:
        facts = replace(facts_of("pirate"), weights=digest, digest=digest)
        registry.put("pirate", facts, source="api", origin="")
        summary = backup(registry, two.root, tmp_path / "out", shared=shared)
    assert summary.blobs == 1
    assert BlobStore(tmp_path / "out" / "blobs").verify(digest)
    assert busy


def test_an_object_that_goes_away_meanwhile_is_asked_for_later(
    s3: Any, two: BlobStore, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = obstore.get

    def last(store: object_store.ObjectStore, path: str, **how: Any) -> obstore.GetResult:
        for key in objects(s3):
            s3.delete_object(Bucket="bucket", Key=key)
        return get(store, path, **how)

    monkeypatch.setattr(obstore, "get", last)
    with pytest.raises(AdapterRefused) as caught:
        two.bring(digest)
    assert caught.value.code == "blobs_unavailable"


def test_what_is_here_is_not_asked_for(s3: Any, one: BlobStore, two: BlobStore, digest: str) -> None:
    assert two.bring(digest)
    for key in objects(s3):
        s3.delete_object(Bucket="bucket", Key=key)
    assert two.bring(digest)
    with pytest.raises(AdapterRefused) as caught:
        BlobStore(one.root.parent / "three", Limits(), one.shared).bring(digest)
    assert caught.value.code == "blob_missing"


def test_without_a_shared_store_nothing_comes(tmp_path: Path) -> None:
    assert not BlobStore(tmp_path / "alone").bring(ABSENT)


def test_other_bytes_under_a_digest_are_refused(s3: Any, two: BlobStore, digest: str) -> None:
    key = next(key for key in objects(s3) if key.endswith(WEIGHTS_NAME))
    s3.put_object(Bucket="bucket", Key=key, Body=b"poisoned")
    with pytest.raises(AdapterRefused) as caught:
        two.bring(digest)
    assert caught.value.code == "blob_missing"
    assert two.digests() == []
    assert list((two.root / "incoming").iterdir()) == []


def test_a_version_that_cannot_be_shared_is_not_published(s3: Any, one: BlobStore, tmp_path: Path) -> None:
    s3.delete_bucket(Bucket="bucket")
    make(tmp_path / "corsair", seed=2)
    with pytest.raises(AdapterRefused) as caught:
        one.put(tmp_path / "corsair")
    s3.create_bucket(Bucket="bucket")
    assert caught.value.code == "blobs_unavailable"
    assert one.digests() == []
    for secret in ("hidden", "AKIDEXAMPLE", "127.0.0.1", "Signature"):
        assert secret not in caught.value.message


@pytest.mark.usefixtures("s3")
def test_a_dead_store_says_so(
    one: BlobStore, two: BlobStore, digest: str, environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(AdapterRefused) as caught:
        two.bring(digest)
    assert caught.value.code == "blobs_unavailable"
    make(tmp_path / "corsair", seed=2)
    with pytest.raises(AdapterRefused) as caught:
        one.put(tmp_path / "corsair")
    assert caught.value.code == "blobs_unavailable"
    assert one.digests() == [digest]


def test_garbage_is_what_nobody_names_and_nobody_wrote_lately(
    s3: Any, shared: SharedBlobs, one: BlobStore, two: BlobStore, digest: str, tmp_path: Path
) -> None:
    make(tmp_path / "corsair", seed=2)
    other = one.put(tmp_path / "corsair")
    assert shared.collect_garbage(lambda: [digest], UNREFERENCED_S) == []
    assert shared.collect_garbage(lambda: [digest], 0.0) == [other]
    assert two.bring(digest)
    with pytest.raises(AdapterRefused):
        two.bring(other)
    assert not any(other in key for key in objects(s3))


def test_what_is_written_anew_while_garbage_is_looked_for_stays(
    shared: SharedBlobs, one: BlobStore, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row comes after the rows were read: only its age, looked at last, says that somebody wants it."""
    ages: list[str] = []
    head = obstore.head

    def watched(store: Any, path: str) -> Any:
        found = head(store, path)
        if digest in path:
            ages.append(path)
            found["last_modified"] = found["last_modified"].replace(year=found["last_modified"].year + 1)
        return found

    monkeypatch.setattr(obstore, "head", watched)
    assert shared.collect_garbage(list, 0.0) == []
    assert ages
    monkeypatch.undo()


def test_a_prefix_is_the_registrys_that_wrote_there_first(s3: Any, shared: SharedBlobs, tmp_path: Path) -> None:
    """Another one would take its files for garbage."""
    make(tmp_path / "pirate")
    url = str(shared)
    registries = [Registry.open(tmp_path / f"{name}.db") for name in ("mine", "other")]
    stores = {}
    for which, registry in (("mine", 0), ("beside", 0), ("other", 1)):
        stores[which] = BlobStore(tmp_path / which, Limits(), SharedBlobs(url, QUICK))
        stores[which].shared.belong_to(registries[registry].identity)
    digest = stores["mine"].put(tmp_path / "pirate")
    assert stores["beside"].put(tmp_path / "pirate") == digest
    held = objects(s3)
    for refused in (
        lambda: stores["other"].put(tmp_path / "pirate"),
        lambda: stores["other"].shared.collect_garbage(list, 0.0),
    ):
        with pytest.raises(AdapterRefused, match=f"{registries[0].identity()}, and this one is") as caught:
            refused()
        assert caught.value.code == "blobs_of_another"
    assert objects(s3) == held
    assert stores["other"].digests() == []
    assert stores["other"].bring(digest), "to read is harmless"
    assert stores["beside"].shared.collect_garbage(list, 0.0) == [digest]
    for registry in registries:
        registry.close()


@pytest.mark.parametrize("url", ["hf://org/name", "/srv/blobs", "s3://"])
def test_what_is_no_object_store_is_refused(url: str) -> None:
    with pytest.raises(AdapterRefused) as caught:
        SharedBlobs(url)
    assert caught.value.code == "bad_source"
