"""A running server and its data folder, managed by the same commands: same answers, and each sees the other's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.peft_files import damage_weights, make_adapter
from cli.conftest import Livery
from cli.folders import data_folder, two_adapters
from cli.processes import ENVIRON, run, serving, url_in

LIVE = ("resident", "requests")  # what only a server knows


@dataclass(frozen=True)
class Running:
    url: str
    data: Path
    one: Path
    two: Path

    def ways(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return ("--url", self.url), ("--data", str(self.data))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server over a folder with one good adapter and one with a NaN."""
    root = tmp_path_factory.mktemp("running")
    make_adapter(root / "served" / "good")
    damage_weights(shutil.copytree(root / "served" / "good", root / "served" / "bad"))
    one, two = two_adapters(root)
    with serving(root / "served", root / "data") as (_, printed):
        yield Running(url_in(printed), root / "data", one, two)


def lasting(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without what only a server knows."""
    kept = {name: value for name, value in answer.items() if name not in LIVE}
    return kept | ({"data": [lasting(one) for one in kept["data"]]} if isinstance(kept.get("data"), list) else {})


@pytest.mark.parametrize("verb", [["ls"], ["show", "good"], ["show", "bad"], ["versions", "good"], ["aliases"]])
def test_looking_answers_the_same_both_ways(running: Running, livery: Livery, verb: list[str]) -> None:
    answers = [livery("adapters", *verb, "--json", *way).json() for way in running.ways()]
    assert lasting(answers[0]) == lasting(answers[1])
    shown = [livery("adapters", *verb, *way) for way in running.ways()]
    assert [done.code for done in shown] == [0, 0]
    for name in ("good", "bad", "aliases"):
        assert len({name in done.out.lower() for done in shown}) == 1


def test_ls_shows_names_states_versions_and_why_one_failed(running: Running, livery: Livery) -> None:
    listed = livery("adapters", "ls", "--url", running.url, "--json").json()
    by_name = {adapter["name"]: adapter for adapter in listed["data"]}
    assert (by_name["bad"]["state"], by_name["good"]["state"]) == ("failed", "ready")
    table = livery("adapters", "ls", "--url", running.url).out
    assert by_name["good"]["digest"][:12] in table
    assert "NaN" in table
    page = livery("adapters", "ls", "--url", running.url, "--limit", "1")
    assert "good" not in page.out
    assert "ls --after bad" in page.out
    assert "good" in livery("adapters", "ls", "--url", running.url, "--after", "bad").out
    assert "bad" not in livery("adapters", "ls", "--url", running.url, "--state", "ready").out


def test_new_weights_are_pushed_either_way(running: Running, livery: Livery, tmp_path: Path) -> None:
    other = make_adapter(tmp_path / "other", seed=9)
    served, folder = running.ways()
    livery("adapters", "add", "policy", make_adapter(tmp_path / "policy"), *served, "--json").json()
    pushed = livery("adapters", "push", "policy", other / "adapter_model.safetensors", *served, "--json").json()
    assert (pushed["version"], pushed["pushed"]["active"]) == (2, True)
    # Nobody ran these: they don't take the place of what was.
    waiting = livery("adapters", "push", "policy", make_adapter(tmp_path / "third", seed=10), *folder, "--json").json()
    assert (waiting["version"], waiting["pushed"]["version"], waiting["pushed"]["active"]) == (2, 3, False)
    shown = livery("adapters", "push", "policy", other, "--keep", "1", "--expected-generation", "3", *served).out
    assert pushed["pushed"]["system_fingerprint"] in shown
    assert "record" in shown, "how long it took; it was run before"
    versions = livery("adapters", "versions", "policy", "--json", *served).json()["data"]
    assert [one["version"] for one in versions] == [3, 2], "the newest one and the active one"
    for way in running.ways():
        lost = livery("adapters", "push", "policy", other, "--expected-generation", "1", *way)
        assert (lost.code, "generation 1 was expected" in lost.err) == (1, True), lost.err
        missing = livery("adapters", "push", "policy", tmp_path / "nothing.safetensors", *way)
        assert (missing.code, "nothing.safetensors" in missing.err) == (1, True), missing.err
        unknown = livery("adapters", "push", "nobody", other, *way)
        assert (unknown.code, "adapter_config.json" in unknown.err) == (1, True), unknown.err


def test_what_is_added_either_way_differs_in_nothing(running: Running, livery: Livery) -> None:
    answers = []
    for name, way in zip(("by-url", "by-data"), running.ways(), strict=True):
        answers.append(livery("adapters", "add", name, running.one, "--pin", "--json", *way).json())
        assert livery("adapters", "show", name, "--json", *way).json()["digest"] == answers[-1]["digest"]
    url, data = answers
    assert (url["state"], url["proven"]) == ("ready", True)
    assert (data["state"], data["proven"]) == ("ready", True), "the server has proven these very files"
    for field in ("digest", "bytes", "coverage", "generation", "pinned", "source", "peft_type", "version"):
        assert url[field] == data[field], field
    for done in (livery("adapters", "add", "by-url", running.one, *way) for way in running.ways()):  # again: idempotent
        assert done.code == 0
        assert url["digest"] in done.out
        assert "4: 2 q_proj, 2 v_proj" in done.out
        assert "F32" in done.out
    assert len(livery("adapters", "versions", "by-url", "--json", "--url", running.url).json()["data"]) == 1


def test_a_server_serves_within_a_second_what_a_command_put_into_its_folder(running: Running, livery: Livery) -> None:
    def answered() -> int:
        body = {"model": "from-the-side", "prompt": "Hello", "max_tokens": 2}
        return httpx.post(f"{running.url}/v1/completions", json=body).status_code

    assert answered() == 404  # remembered as unknown from now on
    added = livery("adapters", "add", "from-the-side", running.two, "--data", running.data, "--json").json()
    deadline = time.monotonic() + 30
    while (status := answered()) == 404 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert status == 200
    shown = livery("adapters", "show", "from-the-side", "--url", running.url, "--json").json()
    assert (shown["digest"], shown["state"], shown["proven"]) == (added["digest"], "ready", True)
    assert livery("adapters", "rm", "from-the-side", "--data", running.data).code == 0
    while (status := answered()) == 200 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert status == 404


def test_an_adapters_life_is_the_same_both_ways(running: Running, livery: Livery, tmp_path: Path) -> None:
    told = []
    for place in (("--url", running.url), ("--data", str(data_folder(tmp_path / "data")))):
        steps: list[Any] = []

        def step(*arguments: object, place: tuple[str, str] = place, steps: list[Any] = steps) -> dict[str, Any]:
            answer: dict[str, Any] = livery("adapters", *arguments, "--json", *place).json()
            steps.append(tuple(answer.get(name) for name in ("name", "version", "generation", "pinned", "targets")))
            return answer

        first = step("add", "life", running.one, "--expected-generation", "0")
        second = step("add", "life", running.two, "--no-activate")
        assert second["digest"] == first["digest"]
        assert [one["version"] for one in step("versions", "life")["data"]] == [2, 1]
        assert step("activate", "life", "2")["digest"] != first["digest"]
        assert step("rollback", "life")["digest"] == first["digest"]
        assert step("activate", "life", second["digest"][:8])["digest"] == first["digest"]
        assert step("pin", "life")["pinned"] is True
        assert step("unpin", "life")["pinned"] is False
        step("add", "other", running.two)
        alias = step("alias", "front", "life=0.9", "other=0.1", "--sticky", "key")
        assert alias["targets"] == [{"adapter": "life", "weight": 0.9}, {"adapter": "other", "weight": 0.1}]
        assert step("alias", "front")["sticky"] == "key"
        assert [one["name"] for one in step("aliases")["data"]] == ["front"]
        assert "life=0.9, other=0.1" in livery("adapters", "alias", "front", *place).out
        stale = livery("adapters", "alias", "front", "--delete", "--expected-generation", "7", *place)
        assert (stale.code, "generation 7 was expected" in stale.err) == (1, True), stale.err
        assert step("alias", "front", "--delete", "--expected-generation", "1")["deleted"] is True
        assert step("rm", "life", "--drain", "1") == {"name": "life", "state": "retired", "requests": 0}
        assert "other is retired" in livery("adapters", "rm", "other", *place).out
        assert livery("adapters", "show", "front", *place).code == 1
        told.append(steps)
    assert told[0] == told[1]


def test_directories_of_links_are_taken_as_hubs_leave_them(running: Running, livery: Livery, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (snapshot / file).symlink_to(running.one / file)
    digests = {livery("adapters", "add", "linked", snapshot, "--json", *way).json()["digest"] for way in running.ways()}
    checked = livery("adapters", "check", snapshot, "--json").json()
    assert digests == {checked["files"]["digest"]}


def test_check_asks_the_server_when_told_to(running: Running, livery: Livery) -> None:
    answers = [livery("adapters", "check", running.one, "--json", *way).json() for way in running.ways()]
    assert answers[0] == answers[1]
    bad = running.data.parent / "served" / "bad"
    for way in running.ways():
        done = livery("adapters", "check", bad, "--json", *way)
        assert (done.code, json.loads(done.out)["code"]) == (1, "nonfinite_weights")
        assert "refused (nonfinite_weights)" in livery("adapters", "check", bad, *way).err


def test_what_is_refused_is_said_in_the_same_words_both_ways(running: Running, livery: Livery, tmp_path: Path) -> None:
    livery("adapters", "add", "taken", running.one, "--url", running.url)
    wide = make_adapter(tmp_path / "wide", hidden=32)
    refused: list[list[object]] = [
        ["show", "nobody"],
        ["versions", "nobody"],
        ["activate", "taken", "7"],
        ["rollback", "taken"],
        ["rm", "nobody"],
        ["pin", "nobody"],
        ["add", "no name", running.one],
        ["add", "smollm2-135m-instruct", running.one],
        ["add", "wide", wide],
        ["add", "broken", running.data.parent / "served" / "bad"],
        ["add", "gone", tmp_path / "gone"],
        ["add", "empty", tmp_path],
        ["add", "taken", running.two, "--expected-generation", "99"],
        ["add", "odd", "ftp://host/x"],
        ["alias", "front", "nobody=1"],
        ["alias", "taken", "good=1"],
        ["alias", "nobody"],
        ["alias", "nobody", "--delete"],
    ]
    for arguments in refused:
        both = [livery("adapters", *arguments, *way) for way in running.ways()]
        assert [done.code for done in both] == [1, 1], (arguments, both)
        assert [done.out for done in both] == ["", ""], arguments
        assert both[0].err == both[1].err, arguments
        assert both[0].err.startswith("error: "), arguments
    names = {one["name"] for one in livery("adapters", "ls", "--url", running.url, "--json").json()["data"]}
    assert not names & {"no name", "wide", "broken", "gone", "empty", "odd", "front"}


def test_a_key_is_needed_where_the_server_has_one(tmp_path: Path, livery: Livery) -> None:
    make_adapter(tmp_path / "served" / "good")
    with serving(tmp_path / "served", tmp_path / "data", LIVERY_API_KEY="sk-right") as (_, printed):
        url = url_in(printed)
        assert livery("adapters", "ls", "--url", url, "--key", " sk-right ").code == 0
        for wrong in ([], ["--key", "sk-wrong"]):
            done = livery("adapters", "ls", "--url", url, *wrong)
            assert done.code == 1
            assert f"{url} says:" in done.err
        done = livery("adapters", "ls", "--url", url, "--key", "日本")
        assert done.code == 1
        assert "no HTTP header" in done.err
        shown = run("adapters", "show", "good", "--json", LIVERY_URL=url, LIVERY_API_KEY="sk-right")
        assert json.loads(shown.stdout)["name"] == "good"


def test_looking_and_adding_load_no_torch(running: Running, livery: Livery) -> None:
    way = ["--data", str(running.data)]
    commands = [
        ["ls", *way],
        ["add", "light", str(running.one), *way],
        ["check", str(running.one), *way],
        ["ls", "--url", running.url],
    ]
    code = (
        "import sys\n"
        "from livery.cli import main\n"
        f"for arguments in {commands!r}:\n"
        "    sys.argv = ['livery', 'adapters', *arguments]\n"
        "    try:\n"
        "        main()\n"
        "        code = 0\n"
        "    except SystemExit as ended:\n"
        "        code = ended.code or 0\n"
        "    print(arguments[0], code, 'torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRON, timeout=120)
    assert done.stderr.splitlines() == [f"{arguments[0]} 0 False" for arguments in commands]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9", "http://", "ftp://host", "127.0.0.1:8000", "http://[::1", "nope"]
)
def test_no_server_is_said_plainly(livery: Livery, url: str) -> None:
    done = livery("adapters", "ls", "--url", url)
    assert done.code == 1
    assert "--url" in done.err
    assert url in done.err


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, '{"detail":"Not Found"}', "not like a Livery server; give its address with --url"),
        (200, '{"detail":"Hello"}', "not like a Livery server"),
        (200, "[]", "not like a Livery server"),
        (200, "<html>", "not like a Livery server"),
        (401, '{"error":{"message":"Incorrect API key.","code":"invalid_api_key"}}', "says: Incorrect API key."),
        (500, '{"error":{"message":"Broken.","code":"internal_error"}}', "says: Broken."),
    ],
)
def test_another_server_is_told_from_ours(livery: Livery, status: int, body: str, said: str) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Standard error is the command's."""

    with HTTPServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        done = livery("adapters", "ls", "--url", f"http://127.0.0.1:{other.server_port}")
        other.shutdown()
        thread.join()
    assert done.code == 1
    assert said in done.err
