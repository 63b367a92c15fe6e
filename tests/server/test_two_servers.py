"""Several servers on one data folder: what one is told all serve; one follows the folder, another takes over."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import httpx

from api.peft_files import make_adapter
from cli.processes import serving, url_in
from cli.skewed import DAY_S, check_they_agree_on_names, moved_clock, pool, served_by, until

QUIETLY = ("--log-level", "error")  # nobody reads their logs here, and a full pipe stops whoever writes


def test_servers_of_one_data_folder_follow_each_other(tmp_path: Path) -> None:
    root, data = tmp_path / "adapters", tmp_path / "data"
    digests = pool(root)

    def put(url: str, seed: int) -> None:
        answer = httpx.put(f"{url}/v1/adapters/pirate", json={"source": f".pool/{seed}"}, timeout=30)
        assert answer.status_code == 200, answer.text

    with serving(root, data, *QUIETLY) as (_, first), serving(root, data, *QUIETLY) as (_, second):
        one, two = url_in(first), url_in(second)
        put(one, 1)
        until(lambda: served_by(two, "pirate") == f"pirate@{digests[1]}", "the second server serves what was added")
        put(two, 2)
        until(lambda: served_by(one, "pirate") == f"pirate@{digests[2]}", "the first serves the replacement")
        httpx.post(f"{two}/v1/adapters/pirate/rollback")
        until(lambda: served_by(one, "pirate") == f"pirate@{digests[1]}", "the first serves what was rolled back to")
        alias = httpx.put(f"{one}/v1/aliases/prod", json={"targets": [{"adapter": "pirate"}]})
        assert alias.status_code == 200
        until(lambda: served_by(two, "prod") == f"pirate@{digests[1]}", "the second knows the alias")
        httpx.delete(f"{one}/v1/aliases/prod")
        httpx.delete(f"{one}/v1/adapters/pirate")
        until(lambda: served_by(two, "pirate") is None, "the second has dropped what was deleted")
        shutil.copytree(root / ".pool" / "2", root / "corsair")
        until(lambda: served_by(two, "corsair") == f"corsair@{digests[2]}", "what one finds in the folder both serve")


def test_when_the_follower_is_killed_another_follows(tmp_path: Path) -> None:
    root, data = tmp_path / "adapters", tmp_path / "data"
    make_adapter(root / ".pool" / "1", seed=1)
    with ExitStack() as follower:
        follower.enter_context(serving(root, data, *QUIETLY))
        with serving(root, data, *QUIETLY) as (_, printed):
            follower.close()  # killed
            shutil.copytree(root / ".pool" / "1", root / "pirate")
            until(lambda: served_by(url_in(printed), "pirate") is not None, "the one that is left follows the folder")


def test_servers_whose_clocks_differ_agree_all_the_same(tmp_path: Path) -> None:
    """What follows what is told by numbers of the registry; the clock of one is a day ahead."""
    root, data = tmp_path / "adapters", tmp_path / "data"
    digests, ahead = pool(root), moved_clock(tmp_path / "ahead", DAY_S)
    with serving(root, data, *QUIETLY) as (_, first), serving(root, data, *QUIETLY, PYTHONPATH=ahead) as (_, second):
        check_they_agree_on_names(url_in(first), url_in(second), digests)
