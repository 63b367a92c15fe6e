"""Several servers on one data folder: what one is told all serve; one follows the folder, another takes over."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx

from api.peft_files import make_adapter
from cli.processes import serving, url_in
from livery_adapters.manifest import read_manifest

PATIENCE_S = 60.0
QUIETLY = ("--log-level", "error")  # nobody reads their logs here, and a full pipe stops whoever writes


def until(condition: Callable[[], bool], what: str) -> None:
    """Ask again and again; a server looks at the registry twice a second."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"still not: {what}"


def served_by(url: str, model: str) -> str | None:
    """NAME@DIGEST, or None while the model isn't served there."""
    answer = httpx.post(f"{url}/v1/completions", json={"model": model, "prompt": [5], "max_tokens": 1}, timeout=30)
    assert answer.status_code in (200, 404, 503), answer.text  # 503: just being loaded
    return answer.headers.get("x-livery-adapter")


def test_servers_of_one_data_folder_follow_each_other(tmp_path: Path) -> None:
    root, data = tmp_path / "adapters", tmp_path / "data"
    for seed in (1, 2):
        make_adapter(root / ".pool" / str(seed), seed=seed)
    digests = {seed: read_manifest(root / ".pool" / str(seed)).digest[:12] for seed in (1, 2)}

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


DAY_S = 86_400
AHEAD = f"import time\nreal = time.time\ntime.time = lambda: real() + {DAY_S}\n"


def test_servers_whose_clocks_differ_agree_all_the_same(tmp_path: Path) -> None:
    """What follows what is told by numbers of the registry; the clock of one is a day ahead."""
    root, data, skewed = tmp_path / "adapters", tmp_path / "data", tmp_path / "ahead"
    skewed.mkdir()
    (skewed / "sitecustomize.py").write_text(AHEAD)
    path = os.pathsep.join(filter(None, (str(skewed), os.environ.get("PYTHONPATH"))))
    for seed in (1, 2):
        make_adapter(root / ".pool" / str(seed), seed=seed)
    digests = {seed: read_manifest(root / ".pool" / str(seed)).digest[:12] for seed in (1, 2)}

    def put(url: str, seed: int, **fields: int) -> int:
        body = {"source": f".pool/{seed}", **fields}
        return httpx.put(f"{url}/v1/adapters/pirate", json=body, timeout=30).status_code

    def started(url: str) -> int:
        return int(httpx.get(f"{url}/v1/models").json()["data"][0]["created"])

    with serving(root, data, *QUIETLY) as (_, first), serving(root, data, *QUIETLY, PYTHONPATH=path) as (_, second):
        now, ahead = url_in(first), url_in(second)
        assert started(ahead) - started(now) > DAY_S / 2
        for one, other in ((now, ahead), (ahead, now)):
            for seed in (1, 2):
                assert put(one, seed) == 200
                until(
                    lambda other=other, seed=seed: served_by(other, "pirate") == f"pirate@{digests[seed]}", "it follows"
                )
            assert httpx.post(f"{other}/v1/adapters/pirate/rollback").status_code == 200
            until(lambda one=one: served_by(one, "pirate") == f"pirate@{digests[1]}", "it follows back")
        generation = httpx.get(f"{now}/v1/adapters/pirate").json()["generation"]
        assert put(ahead, 2, expected_generation=generation) == 200
        assert put(now, 1, expected_generation=generation) == 409
