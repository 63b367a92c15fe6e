"""Adapter files in an object store that several servers share, each with copies of its own in a BlobStore.

    shared = SharedBlobs("s3://bucket/livery")          # gs:// and az:// too; credentials from the environment
    store = BlobStore(Path("data"), shared=shared)      # publishing keeps the files there too, before a row names them
    store.bring(digest)                                 # a copy from there, where this folder has none

A version is two objects below `PREFIX/sha256/ab/<64 hex>/`, written before a row refers to them and never changed. What
comes from there is hashed on its way in like anything else, so an object that was cut short or exchanged is refused,
and never served. Knows no names. Every call blocks on the network: use a worker thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError

from livery_adapters.fetching.network import NetworkLimits
from livery_adapters.fetching.object_store import ObjectStore, fetch_objects, open_store
from livery_adapters.fetching.spec import ObjectSource, parse_source
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tensor_file import FILE_NAMES

if TYPE_CHECKING:
    from livery_adapters.incoming import Incoming

PATIENCE = NetworkLimits(connect_s=5.0, stall_s=20.0, total_s=900.0, retries=2, backoff_s=0.2)
UNREFERENCED_S = 24 * 3600.0  # longer than any version waits between its upload and the row that refers to it
_CLOCK = "clock"
_OWNER = "registry"  # holds the identity of the registry that the prefix belongs to
_BLOB = re.compile(r"sha256/[0-9a-f]{2}/([0-9a-f]{64})/[^/]+")


class SharedBlobs:
    """One prefix of an object store. Several servers may use it at once; threads may call it together."""

    def __init__(self, url: str, limits: NetworkLimits = PATIENCE) -> None:
        """Touches no network. Raises AdapterRefused (bad_source) for what names no prefix of an object store."""
        source = parse_source(url)
        if not isinstance(source, ObjectSource):
            raise AdapterRefused(
                "bad_source", f"{url} is no object store; write s3://bucket/prefix, gs://bucket/prefix or az://..."
            )
        self._root = source
        self._limits = limits
        self._owner: Callable[[], str] | None = None
        self._claimed = False

    def belong_to(self, identity: Callable[[], str]) -> None:
        """Write and delete for one registry only: a prefix is the one's that wrote there first.

        `identity` is asked once, on the first writing, and may block. Two registries that shared a prefix would each
        delete the other's files as garbage.
        """
        self._owner = identity

    def __str__(self) -> str:
        return str(self._root)

    def keep(self, digest: str, files: Path) -> None:
        """Write a version's two files there, also where they are already.

        Raises AdapterRefused: blobs_unavailable, blobs_of_another.
        They are written anew so that they are young: see `collect_garbage`.
        """
        with self._explained(f"version {digest[:12]} can't be written to"):
            self._claim()
            store = self._open(self._place(digest))
            for name in FILE_NAMES:
                obstore.put(store, name, files / name)

    def bring(self, digest: str, incoming: Incoming) -> None:
        """Stream a version's files in and end them; they are what the digest says.

        Raises AdapterRefused: blobs_unavailable, blob_missing (not there, or not the bytes of that digest), and what
        `Incoming` raises.
        """
        try:
            fetch_objects(self._place(digest), incoming, lambda done, total: None, self._limits, one_state=False)
        except AdapterRefused as refused:
            if refused.code in ("source_not_found", "missing_config", "missing_weights"):
                raise AdapterRefused(
                    "blob_missing", f"the files of version {digest[:12]} are not in {self}; add the adapter again"
                ) from refused
            if refused.code.startswith("source_") or refused.code == "incomplete":  # written by somebody just now
                raise self._unavailable(f"version {digest[:12]} can't be fetched from", refused.code) from refused
            raise
        if incoming.seal() != digest:
            raise AdapterRefused(
                "blob_missing",
                f"what {self} holds as version {digest[:12]} are other bytes; delete them there and add it again",
            )

    def collect_garbage(self, keep: Callable[[], Collection[str]], unreferenced_s: float = UNREFERENCED_S) -> list[str]:
        """Delete versions that `keep` doesn't name and that nobody has written for so long; return their digests.

        Ages are told by the object store's own clock, so servers whose clocks differ agree. `keep` is asked after the
        versions were listed. One that is written anew between the look at its age and its deletion, some milliseconds,
        is lost there; its writer would have it still. Raises AdapterRefused: blobs_unavailable, blobs_of_another.
        """
        with self._explained("old versions can't be looked for in"):
            self._claim()
            store = self._open(self._root)
            limit = self._now(store) - timedelta(seconds=unreferenced_s)
            found: dict[str, list[str]] = {}
            for page in obstore.list(store, "sha256"):
                for meta in page:
                    if match := _BLOB.fullmatch(meta["path"].removeprefix(f"{self._root.prefix}/")):
                        found.setdefault(match[1], []).append(match[0])
            removed = []
            for digest in sorted(found.keys() - set(keep())):
                if all(self._old(store, path, limit) for path in found[digest]):
                    obstore.delete(store, found[digest])
                    removed.append(digest)
        return removed

    def _claim(self) -> None:
        """Raises AdapterRefused (blobs_of_another) where another registry was first."""
        if self._claimed or self._owner is None:
            return
        store, mine = self._open(self._root), self._owner()
        try:
            obstore.put(store, _OWNER, mine.encode(), mode="create")
            found = mine
        except AlreadyExistsError:
            found = bytes(obstore.get(store, _OWNER).bytes()).decode(errors="replace")
        if found != mine:
            raise AdapterRefused(
                "blobs_of_another",
                f"{self} belongs to another registry ({found[:32]}, and this one is {mine}), whose files would be "
                f"garbage here: name another prefix by --blob-store, or delete the object {_OWNER!r} there if that "
                "registry is gone and this one takes its place",
            )
        self._claimed = True

    def _now(self, store: ObjectStore) -> datetime:
        """What time it is for the object store."""
        obstore.put(store, _CLOCK, b"")
        now: datetime = obstore.head(store, _CLOCK)["last_modified"]
        return now

    def _old(self, store: ObjectStore, path: str, limit: datetime) -> bool:
        try:
            written: datetime = obstore.head(store, path)["last_modified"]
        except FileNotFoundError:
            return True
        return written.astimezone(UTC) <= limit

    def _place(self, digest: str) -> ObjectSource:
        """Where a version's two files are. Raises ValueError for what is no digest."""
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(f"{digest[:80]!r} is not a SHA-256 digest in lower-case hex")
        prefix = "/".join(filter(None, (self._root.prefix, "sha256", digest[:2], digest)))
        return ObjectSource(self._root.scheme, self._root.bucket, prefix)

    def _open(self, place: ObjectSource) -> ObjectStore:
        return open_store(place, self._limits)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """The store's errors as refusals; their own texts hold addresses, which may be signed, and are dropped."""
        try:
            yield
        except (BaseError, ValueError, OSError) as error:
            raise self._unavailable(what, type(error).__name__) from error

    def _unavailable(self, what: str, reason: str) -> AdapterRefused:
        return AdapterRefused(
            "blobs_unavailable",
            f"{what} {self} ({reason}); the object store must answer, and the server's credentials allow it. Try again "
            "later",
        )
