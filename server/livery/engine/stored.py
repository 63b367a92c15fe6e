"""A stored version as an engine finds it: its manifest, proven to be the one that it was asked for. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from livery.engine.base import AdapterPart
from livery_adapters.base_model import BaseModel
from livery_adapters.layout import AdapterManifest
from livery_adapters.manifest import Limits, check_against, parse_manifest, read_manifest
from livery_adapters.refusal import TAKEN_IN, AdapterRefused
from livery_adapters.tasks import placed

MOST_KNOWN = 2 << 20  # bytes of configurations and headers; what is made of them takes some ten times that


@dataclass(slots=True)
class _Known:
    """What a configuration and a header say; `fits`: that was compared with the base."""

    manifest: AdapterManifest
    nbytes: int
    fits: bool = False


class StoredManifests:
    """The manifests of stored versions for one base. For one thread.

    Adapters of one recipe have the same configuration and the same header, byte for byte, and differ in their numbers:
    what these bytes say is worked out once for all of them, as long as it fits into MOST_KNOWN with what was asked for
    since. The files themselves are read, and hashed, every time.
    """

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._known: dict[tuple[bytes, bytes, int], _Known] = {}  # the longest unused first
        self._latest: _Known | None = None

    def read(self, part: AdapterPart) -> AdapterManifest:
        """What a stored version is, hashed again unless that was done when it came in. Raises AdapterRefused."""
        digest = part.digest if part.verified else None
        manifest = read_manifest(Path(part.path), TAKEN_IN, digest=digest, parse=self._parse)
        if manifest.digest != part.digest:
            raise AdapterRefused(
                "activation_failed",
                f"the stored files of {part.digest[:12]} hash to {manifest.digest[:12]} by now: they were changed "
                "since they were added, or the disk is failing; add the adapter again",
            )
        assert self._latest is not None
        if not self._latest.fits:
            check_against(manifest, self._base, TAKEN_IN)
            self._latest.fits = True
        return manifest

    def _parse(self, config: bytes, header: bytes, size: int, limits: Limits) -> AdapterManifest:
        key = (config, header, size)
        known = self._known.pop(key, None)
        if known is None:
            manifest = placed(parse_manifest(config, header, size, limits), self._base)
            known = _Known(manifest, len(config) + len(header))
        self._known[key] = self._latest = known
        while sum(one.nbytes for one in self._known.values()) > MOST_KNOWN:
            del self._known[next(iter(self._known))]
        return known.manifest


def stored_manifest(part: AdapterPart, base: BaseModel) -> AdapterManifest:
    """What one stored version is; for several see StoredManifests. Raises AdapterRefused."""
    return StoredManifests(base).read(part)
