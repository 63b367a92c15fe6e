"""Adapter files by content, to read: a folder of blobs, also one that nobody may write to, as a backup's.

    blobs = Blobs(Path("backup/blobs"))
    blobs.path(digest)        # a directory with a version's two files
    blobs.verify(digest)      # whether they are still those that gave the digest

See livery_adapters.store for what makes and deletes them. Every call blocks on the disk.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from pathlib import Path

from livery_adapters.layout import digest_of
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tensor_file import CHUNK, FILE_NAMES, open_regular

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """What is below `root/sha256`, which needn't be there. Makes and locks nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "sha256"

    def path(self, digest: str) -> Path:
        """Where a version's files are. The one place where a digest becomes a path. Raises ValueError."""
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest[:80]!r} is not a SHA-256 digest in lower-case hex")
        return self._blobs / digest[:2] / digest

    def digests(self) -> list[str]:
        """Every version held, sorted."""
        return sorted(entry.name for entry in self._blobs.glob("??/*") if _DIGEST.fullmatch(entry.name))

    def verify(self, digest: str) -> bool:
        """Whether a version is held and its files are still those that gave the digest; reads them in full."""
        try:
            return digest_of({name: _sha256(self.path(digest), name) for name in FILE_NAMES}) == digest
        except (AdapterRefused, OSError):
            return False

    def export(self, digest: str, out: Path) -> None:
        """Copy a version's two files into the directory `out`, made when it isn't there.

        Raises FileExistsError when it isn't empty, FileNotFoundError for a version that isn't held, OSError.
        """
        held = self.path(digest)
        if not held.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such adapter version in the store", digest)
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise FileExistsError(errno.EEXIST, "the directory is not empty; choose another", str(out))
        for name in FILE_NAMES:
            shutil.copyfile(held / name, out / name)


def _sha256(directory: Path, name: str) -> str:
    digest = hashlib.sha256()
    with open_regular(directory, name) as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
