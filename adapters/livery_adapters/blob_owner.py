"""Whose a folder of blobs is: the files in it are one registry's, and to any other they would be garbage.

    owner = BlobOwner(root, registry.identity, registry.weights_in_use, held)
    owner.check()     # before anything is done with the folder
    owner.claim()     # before a blob is published, or deleted

The file `registry` beside the blobs holds the identity of the registry that published there first. A folder without
one, from before there was this, is the registry's that lists some of its blobs. One without blobs is anybody's.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from pathlib import Path

from livery_adapters.incoming import sync_directory
from livery_adapters.refusal import AdapterRefused

MARK = "registry"
_MOST = 128


class BlobOwner:
    """Of one folder, for one registry. Threads and processes may call it together; every call blocks."""

    def __init__(
        self,
        root: Path,
        identity: Callable[[], str],
        listed: Callable[[], Collection[str]],
        held: Callable[[], Collection[str]],
    ) -> None:
        """`listed`: the blobs that the registry's versions are made of; `held`: those that are in the folder."""
        self._root = root
        self._mark = root / MARK
        self._identity = identity
        self._listed = listed
        self._held = held
        self._known: str | None = None

    def check(self) -> None:
        """Raises AdapterRefused (blobs_of_another) where the blobs in the folder aren't this registry's; OSError."""
        if self._found() == self._mine() or not (held := self._held()):
            return
        if self._found() is None:
            if not set(self._listed()).intersection(held):
                raise self._of_another(f"none of the {len(held)} versions there is in this one, {self._mine()}")
            self._write(os.link)  # now, for what it lists today may be garbage tomorrow
        if (found := self._found()) != self._mine():
            raise self._of_another(f"{found}, and this one is {self._mine()}")

    def claim(self, alone: AbstractContextManager[None]) -> None:
        """Have the folder be this registry's. `alone` keeps others from publishing meanwhile.

        Raises AdapterRefused (blobs_of_another), OSError, and what `alone` does.
        """
        self.check()
        if self._found() is None:
            self._write(os.link)
        if self._found() != self._mine():
            with alone:  # it is empty, and stays so until it is this one's
                self.check()
                self._write(os.replace)

    def _mine(self) -> str:
        if self._known is None:
            self._known = self._identity()
        return self._known

    def _found(self) -> str | None:
        try:
            with self._mark.open("rb") as file:
                return file.read(_MOST).decode(errors="replace").strip() or None
        except FileNotFoundError:
            return None

    def _write(self, put: Callable[[Path, Path], None]) -> None:
        """Write the mark whole. One that is there stays, where `put` doesn't replace it."""
        staged = self._root / f".{MARK}-{uuid.uuid4().hex}"
        try:
            with staged.open("xb") as file:
                file.write(f"{self._mine()}\n".encode())
                file.flush()
                os.fsync(file.fileno())
            put(staged, self._mark)
            sync_directory(self._root)
        except FileExistsError:
            pass
        finally:
            staged.unlink(missing_ok=True)

    def _of_another(self, why: str) -> AdapterRefused:
        return AdapterRefused(
            "blobs_of_another",
            f"the adapter files in the data folder belong to another registry ({why}), and would be garbage here: name "
            "that one with --registry, or another --data; if this one takes its place, move the folder `adapters` in "
            "there away first",
        )
