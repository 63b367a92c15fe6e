"""What may lie beside an adapter's two files and says how it is to be used. None of it is part of the weights."""

from __future__ import annotations

from livery_adapters.profile import MAX_PROFILE_BYTES, PROFILE_NAME

# The most bytes of each.
BESIDE_LIMITS = {PROFILE_NAME: MAX_PROFILE_BYTES}
BESIDE_NAMES = tuple(BESIDE_LIMITS)
