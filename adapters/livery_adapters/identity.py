"""The digests that name a version: of what the engine applies, and of all that a response depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

DIGEST_SHOWN = 12  # digits of a version's digest, where it is shown beside a name


def fingerprint(base: str, version: str) -> str:
    """What answers carry as their system_fingerprint, by the digests of the base and of the version they are of."""
    return f"livery-{base[:8]}-{version[:DIGEST_SHOWN]}"


def converted_digest(weights: str, approximate: int) -> str:
    """The digest of what an engine applies: SHA-256 hex.

    `weights` is the digest of the two files, `approximate` the rank to which a type without an exact form is
    factorised. With 0 the files' own digest.
    """
    return _digest("livery converted 1", weights, str(approximate)) if approximate else weights


def version_digest(weights: str, approximate: int, profile: Mapping[str, object]) -> str:
    """The digest of a version: what the engine applies and the profile that goes with it. SHA-256 hex.

    With an empty profile that of what the engine applies. Raises TypeError or ValueError when `profile` isn't JSON.
    """
    converted = converted_digest(weights, approximate)
    if not profile:
        return converted
    return _digest("livery version 1", converted, json.dumps(profile, sort_keys=True, allow_nan=False))


def _digest(tag: str, *fields: str) -> str:
    """SHA-256 over the tag and the fields, each after its length, so that no two lists of fields look alike."""
    digest = hashlib.sha256()
    for field in (tag, *fields):
        data = field.encode()
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()
