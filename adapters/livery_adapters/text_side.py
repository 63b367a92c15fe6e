"""Who knows the base's tokenizer and chat template, and so what an adapter may bring of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from livery_adapters.profile import PROFILE_NAME, Profile, ProfileInvalid, parse_profile
from livery_adapters.refusal import AdapterRefused


class TextSide(Protocol):
    """Knows the base's tokenizer and chat template. The server's renders templates apart; see livery.adapter_text."""

    def look(self, beside: Mapping[str, bytes]) -> Mapping[str, object]:
        """What lies beside an adapter and differs from the base's, as JSON values. Blocks."""
        ...

    async def settle(self, profile: Profile, found: Mapping[str, object], added_tokens: int = 0) -> Profile:
        """The profile with what it asks for of what was found. Raises AdapterRefused where that can't be used.

        `added_tokens` are rows that the adapter has beyond the base's vocabulary.
        """
        ...


class NoText:
    """For whoever has no base at hand: a profile that asks for nothing of the adapter's folder is taken."""

    def look(self, beside: Mapping[str, bytes]) -> Mapping[str, object]:
        return {}

    async def settle(self, profile: Profile, found: Mapping[str, object], added_tokens: int = 0) -> Profile:
        if profile.chat_template is not None or profile.tokenizer != "base" or profile.added_tokens:
            raise AdapterRefused(
                "bad_profile",
                "a template or tokens of the adapter's own are compared with the base's and tried, and the base isn't "
                "at hand here; add it to a running server (--url), or name the base with --model",
            )
        return profile


def profile_beside(beside: Mapping[str, bytes], given: Profile | None) -> Profile:
    """The profile given, or that of the profile.yaml that came along. Raises AdapterRefused (bad_profile)."""
    if given is not None:
        return given
    try:
        return parse_profile(beside.get(PROFILE_NAME, b""))
    except ProfileInvalid as invalid:
        raise AdapterRefused("bad_profile", str(invalid)) from None
