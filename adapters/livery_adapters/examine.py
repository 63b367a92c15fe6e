"""Every check of an adapter's files that needs neither a model nor torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from livery_adapters.base_model import BaseModel
from livery_adapters.coverage import CoverageReport, check_against
from livery_adapters.finite import check_finite
from livery_adapters.manifest import AdapterManifest, read_manifest
from livery_adapters.profile import Profile
from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.tasks import placed

NOT_YET = "0" * 64  # the digest of files that are still being hashed


@dataclass(frozen=True, slots=True)
class CheckedFiles:
    """A directory that passed, what it says and what of the base it covers."""

    manifest: AdapterManifest
    coverage: CoverageReport

    def of(self, digest: str) -> CheckedFiles:
        """The same of files that turned out to have this digest."""
        return CheckedFiles(replace(self.manifest, digest=digest), replace(self.coverage, digest=digest))


def check_headers(
    directory: Path, base: BaseModel, limits: Limits, digest: str | None = None, approximate: int = 0
) -> CheckedFiles:
    """Read a directory and check it against the base, all but the numbers. Blocks. Raises AdapterRefused.

    `digest` says what the files hash to where that is known, or NOT_YET; else they are read once more to find out.
    `approximate` is the rank to which the engine will factorise what has too large a rank of its own; 0: none.
    """
    with _readable(directory):
        manifest = placed(read_manifest(directory, limits, digest=digest), base)
        return CheckedFiles(manifest, check_against(manifest, base, limits, approximate))


def check_numbers(directory: Path, manifest: AdapterManifest) -> None:
    """Read all weights once. Blocks. Raises AdapterRefused where a number is NaN or infinite."""
    with _readable(directory):
        check_finite(directory, manifest)


def check_base(version: str, checked_for: str, base: BaseModel) -> None:
    """Was a version, by its digest, taken in for this base, by its digest? Raises AdapterRefused (wrong_base)."""
    if checked_for != base.digest:
        raise AdapterRefused(
            "wrong_base",
            f"version {version[:12]} was taken in for another base model ({checked_for[:12]}) and this server runs "
            f"{base.name} ({base.digest[:12]}); add the adapter again, or use another --data",
        )


def check_labels(profile: Profile, classes: int) -> None:
    """Does each class of the adapter's head get one name, or none of them? Raises AdapterRefused (bad_profile)."""
    if profile.labels and len(profile.labels) != classes:
        raise AdapterRefused(
            "bad_profile",
            f"labels has {len(profile.labels)} names and the adapter's head {classes} classes; name each of them, in "
            "the head's order, or leave labels out",
        )


@contextmanager
def _readable(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AdapterRefused("unreadable", f"{directory.name!r} can't be read: {error.strerror}") from error
