"""What a key looks like: `lv-<id>-<secret>`, of which only the digest is kept.

256 random bits can't be guessed, so one pass of SHA-256 is enough: what is slow on purpose protects words that people
choose.
"""

from __future__ import annotations

import base64
import hashlib
import os
from typing import NamedTuple

ID_BYTES = 5  # eight characters of base32
SECRET_BYTES = 32
MAX_KEY = 512  # bytes; what is longer is no key, and isn't hashed


class NewKey(NamedTuple):
    """A key, to be shown once. `digest` is its SHA-256."""

    id: str
    text: str
    digest: bytes


def new_key() -> NewKey:
    """Another key out of the system's random bits."""
    name = base64.b32encode(os.urandom(ID_BYTES)).decode().lower()
    secret = base64.urlsafe_b64encode(os.urandom(SECRET_BYTES)).decode().rstrip("=")
    text = f"lv-{name}-{secret}"
    return NewKey(name, text, digest(text.encode()))


def digest(key: bytes) -> bytes:
    """What is compared and kept of a key."""
    return hashlib.sha256(key).digest()
