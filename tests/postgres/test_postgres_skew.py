"""Servers of one PostgreSQL whose clocks are a day ahead and a day behind: its clock says when keys expire."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx

from cli.processes import run, serving, url_in
from cli.skewed import DAY_S, check_they_agree_on_names, moved_clock, pool, until
from livery.tenancy import TenantStore

HOUR_S = 3600.0


def test_names_and_keys_are_the_same_on_servers_whose_clocks_are_wrong(
    new_url: Callable[[], str], tmp_path: Path
) -> None:
    registry, root, data = new_url(), tmp_path / "adapters", tmp_path / "data"
    digests = pool(root)
    flags = ("--registry", registry, "--log-level", "error")
    tomorrow, yesterday = moved_clock(tmp_path / "ahead", DAY_S), moved_clock(tmp_path / "behind", -DAY_S)
    with (
        serving(root, data, *flags, PYTHONPATH=tomorrow) as (_, first),
        serving(root, data, *flags, PYTHONPATH=yesterday) as (_, second),
        closing(TenantStore.open(registry)) as tenants,
    ):
        ahead, behind = url_in(first), url_in(second)
        check_they_agree_on_names(behind, ahead, digests)

        def taken(key: str) -> list[bool]:
            headers = {"authorization": f"Bearer {key}"}
            return [httpx.get(f"{url}/v1/models", headers=headers).status_code == 200 for url in (ahead, behind)]

        kept, secret, _ = tenants.create_key("acme", expires=tenants.now() + HOUR_S, occupied=lambda _: None)
        until(lambda: taken(secret) == [True, True], "both take a key of an hour")
        # Made where the clock is wrong, of a span that is counted from now.
        made = run("keys", "create", "--tenant", "acme", "--expires", "1h", *flags[:2], "--json", PYTHONPATH=tomorrow)
        told = json.loads(made.stdout)
        assert abs(told["expires"] - tenants.now() - HOUR_S) < HOUR_S / 2
        until(lambda: taken(told["key"]) == [True, True], "both take that one")
        _, new = tenants.rotate_key(kept.id, grace_s=2.0)
        until(lambda: taken(secret) == [False, False], "neither takes the old one beyond its grace")
        until(lambda: taken(new) == [True, True], "both take the new one")
        assert taken(told["key"]) == [True, True]
