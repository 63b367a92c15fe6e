"""`livery keys` and `livery tenants` with the tenants in PostgreSQL, beside a registry or alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cli.conftest import Livery, livery
from cli.folders import use

__all__ = ["livery"]  # a fixture


@pytest.mark.parametrize("first", [("adapters", "aliases"), ("tenants", "create", "zeta")])
def test_keys_are_kept_beside_the_registry(
    new_url: Callable[[], str], livery: Livery, tmp_path: Path, first: tuple[str, ...]
) -> None:
    url, data = new_url(), tmp_path / "data"
    data.mkdir()
    assert livery(*first, "--data", data, "--registry", url).code == 0
    made = livery("keys", "create", "--tenant", "acme", "--registry", url, "--json").json()
    (kept,) = livery("keys", "ls", "--registry", url, "--json").json()["data"]
    assert kept["id"] == made["id"]
    use(url)
    by = ("--by", "hour,tenant,key,adapter,version", "--json")
    used = livery("usage", *by, "--data", data, "--registry", url).json()["data"]
    assert len(used) == 2
    out, new = tmp_path / "backup", tmp_path / "new"
    assert livery("data", "backup", out, "--data", data, "--registry", url).code == 0
    assert livery("data", "restore", out, "--data", new).code == 0  # into SQLite
    assert livery("keys", "ls", "--data", new, "--json").json()["data"] == [kept]
    assert livery("usage", *by, "--data", new).json()["data"] == used
    assert livery("data", "backup", tmp_path / "again", "--data", new).code == 0
    back = new_url()
    assert livery("data", "restore", tmp_path / "again", "--data", tmp_path / "back", "--registry", back).code == 0
    assert livery("keys", "ls", "--registry", back, "--json").json()["data"] == [kept]
    assert livery("usage", *by, "--data", tmp_path / "back", "--registry", back).json()["data"] == used
