"""Digests of versions: the same for the same, another for anything else."""

from __future__ import annotations

import hashlib
from itertools import combinations

import pytest

from livery_adapters.identity import converted_digest, version_digest

FILES = hashlib.sha256(b"files").hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()


def test_an_exact_adapter_without_profile_is_its_files() -> None:
    assert converted_digest(FILES, 0) == version_digest(FILES, 0, {}) == FILES


def test_everything_counts() -> None:
    digests = [
        FILES,
        converted_digest(FILES, 1),
        converted_digest(FILES, 11),
        converted_digest(OTHER, 1),
        version_digest(FILES, 0, {"temperature": 1}),
        version_digest(FILES, 0, {"temperature": 2}),
        version_digest(FILES, 0, {"temperature": "1"}),
        version_digest(FILES, 1, {"temperature": 1}),
        version_digest(OTHER, 0, {"temperature": 1}),
        version_digest(FILES, 0, {"stop": ["a", "b"]}),
        version_digest(FILES, 0, {"stop": ["a,b"]}),
    ]
    assert all(one != other for one, other in combinations(digests, 2))
    assert all(len(digest) == 64 and int(digest, 16) for digest in digests)


def test_the_order_of_a_profile_does_not_count() -> None:
    assert version_digest(FILES, 0, {"a": 1, "b": 2}) == version_digest(FILES, 0, {"b": 2, "a": 1})


def test_digests_stay_what_they_are() -> None:
    """They are in databases: another value would make every version a new one."""
    assert converted_digest(FILES, 16) == "84cc48aac7a3e685c6ae1c7bf1169d2ce8f15e695b2df85f73b26e40d0e7c099"
    assert (
        version_digest(FILES, 16, {"temperature": 0.5, "stop": ["é"]})
        == "a810efd78dda8115cbb4b2b3bfa80571fc4b957c7c270a8ba6e0b784440ca197"
    )


def test_a_profile_is_json() -> None:
    with pytest.raises(ValueError, match="JSON"):
        version_digest(FILES, 0, {"temperature": float("nan")})
    with pytest.raises(TypeError):
        version_digest(FILES, 0, {"temperature": object()})
