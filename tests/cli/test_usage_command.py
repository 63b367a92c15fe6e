"""`livery usage`: of a data folder and of a server in its own process, as a table, JSON and CSV, for whoever asks."""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from api.peft_files import make_adapter
from cli.conftest import Livery
from cli.folders import data_folder, use
from cli.processes import serving, url_in
from livery.data_folder import DataFolder
from livery.tenancy import TenantStore, UsageStore
from livery.tenancy.usage import Question

COUNTS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens")
# Who, whose, the role, and the requests made: model and tokens of the answer.
CALLERS = {
    "user": ("acme", "user", [("smollm2-135m-instruct", 3), ("pirate", 4)]),
    "owner": ("acme", "owner", [("smollm2-135m-instruct", 5)]),
    "other": ("zeta", "user", [("smollm2-135m-instruct", 7)]),
    "admin": ("default", "admin", []),
}
PROMPT = 2  # tokens of each


class Scene(NamedTuple):
    """A server that was asked, with its folder and everybody's key."""

    data: Path
    url: str
    keys: dict[str, str]

    def id(self, who: str) -> str:
        return self.keys[who].split("-")[1]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("usage")
    data = folder / "data"
    DataFolder(data).make()
    make_adapter(folder / "adapters" / "pirate")
    store = TenantStore.open(DataFolder(data).tenants_url(None))
    keys = {}
    for who, (tenant, role, _) in CALLERS.items():
        _, keys[who], _ = store.create_key(tenant, role=role, occupied=lambda _: None)  # type: ignore[arg-type]
    with serving(folder / "adapters", data) as (_, printed):
        url = url_in(printed)
        for who, (_, _, asked) in CALLERS.items():
            for model, tokens in asked:
                body = {"model": model, "prompt": [3, 4], "max_tokens": tokens, "ignore_eos": True}
                headers = {"authorization": f"Bearer {keys[who]}"}
                answer = httpx.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60)
                assert answer.status_code == 200, answer.text
        written(store, 4)
        yield Scene(data, url, keys)
    store.close()


def written(store: TenantStore, requests: int) -> None:
    """Wait for a server's next flush."""
    usage, deadline = UsageStore(store.database), time.monotonic() + 60
    while usage.report(Question(by=()))[0].counts.requests < requests:
        assert time.monotonic() < deadline, "nothing was written"
        time.sleep(0.02)


def made(*callers: str) -> dict[str, int]:
    tokens = [count for who in callers for _, count in CALLERS[who][2]]
    return dict(zip(COUNTS, (len(tokens), PROMPT * len(tokens), 0, sum(tokens)), strict=True))


def counted(line: dict[str, Any]) -> dict[str, int]:
    return {name: int(line[name]) for name in COUNTS}


def test_a_server_and_its_folder_say_the_same_to_an_operator(scene: Scene, livery: Livery) -> None:
    places: list[tuple[object, ...]] = [("--data", scene.data), ("--url", scene.url, "--key", scene.keys["admin"])]
    for verb in (
        (),
        ("--by", "tenant"),
        ("--by", "tenant", "--by", "key"),
        ("--by", "adapter,version,hour"),
        ("--tenant", "acme", "--adapter", "pirate", "--by", "adapter"),
        ("--key-id", scene.id("owner"), "--from", "2020-01-01", "--to", "2200-01-01T08:00"),
        ("--by", "key", "--limit", "1"),
        ("--by", "key", "--csv", "--limit", "1"),
        ("--to", "2020-01-01"),
        ("--tenant", "nobody", "--csv"),
        ("--by", "colour"),
        ("--by", "day,day"),
        ("--from", "yesterday"),
        ("--after", "x"),
    ):
        for form in ([], ["--json"]) if "--csv" not in verb else ([],):
            here, there = (livery("usage", *verb, *form, *place) for place in places)
            assert (here.code, here.out, here.err) == (there.code, there.out, there.err), verb
            assert here.out or here.err
    lines = livery("usage", "--by", "tenant", *places[0], "--json").json()["data"]
    assert {line["tenant"]: counted(line) for line in lines} == {"acme": made("user", "owner"), "zeta": made("other")}
    filters = ("--by", "key", "--tenant", "acme", "--adapter", "pirate", "--json")
    (line,) = livery("usage", *filters, *places[0]).json()["data"]
    assert (line["key"], line["completion_tokens"]) == (scene.id("user"), 4)
    owner = livery("usage", "--key-id", scene.id("owner"), "--json", *places[0]).json()["data"]
    assert [counted(line) for line in owner] == [made("owner")]


def test_everybody_sees_what_is_theirs(scene: Scene, livery: Livery) -> None:
    def lines(who: str, *arguments: str) -> dict[str, dict[str, int]]:
        asked = ("usage", "--by", "key", "--json", *arguments, "--url", scene.url, "--key", scene.keys[who])
        return {line["key"]: counted(line) for line in livery(*asked).json()["data"]}

    ids = {who: scene.id(who) for who in CALLERS}
    everybody = {ids[who]: made(who) for who in ("user", "owner", "other")}
    assert lines("admin") == everybody
    assert lines("owner") == {ids[who]: made(who) for who in ("user", "owner")}
    assert lines("user") == {ids["user"]: made("user")} == lines("user", "--tenant", "acme")
    assert lines("other", "--key-id", ids["other"]) == {ids["other"]: made("other")}
    for who, filters, told in (
        ("user", ("--key-id", ids["owner"]), f"this key sees the usage of '{ids['user']}' alone; leave key out"),
        ("owner", ("--tenant", "zeta"), "this key sees the usage of 'acme' alone; leave tenant out"),
    ):
        done = livery("usage", *filters, "--url", scene.url, "--key", scene.keys[who])
        assert (done.code, done.out) == (1, "")
        assert told in done.err
    stranger = livery("usage", "--url", scene.url)
    assert (stranger.code, stranger.out) == (1, "")
    assert f"{scene.url} says: " in stranger.err and "key" in stranger.err


def test_pages_lead_on_and_csv_has_them_all(scene: Scene, livery: Livery) -> None:
    here = ("usage", "--by", "tenant,adapter", "--data", scene.data)
    whole = livery(*here, "--json").json()["data"]
    first = livery(*here, "--limit", "2")
    assert [line.split()[0] for line in first.out.splitlines()] == ["by", "tenant", "acme", "acme", "more:"]
    after = first.out.split()[-1]
    second = livery(*here, "--limit", "2", "--after", after)
    assert second.out.splitlines()[2:] and "zeta" in second.out and "more" not in second.out
    text = livery(*here, "--csv", "--limit", "1").out
    assert list(csv.DictReader(io.StringIO(text))) == [
        {name: str(value) for name, value in line.items()} for line in whole
    ]
    both = livery(*here, "--csv", "--json")
    assert both.code == 2
    assert "--csv and --json: give one of them" in " ".join(both.err.split())


def test_a_table_is_for_people(livery: Livery, tmp_path: Path) -> None:
    use(data_folder(tmp_path / "data") / "tenants.db")
    shown = livery("usage", "--by", "hour,tenant,adapter,version", "--data", tmp_path / "data").out.splitlines()[1:]
    heading = "hour tenant adapter version requests prompt tokens cached tokens completion tokens"
    assert shown[0].split() == heading.split()
    assert shown[1].split() == ["2024-10-04T00:00:00Z", "acme", "acme/pirate", "ab" * 6, "3", "4,000", "2,000", "70"]
    assert shown[2].split() == ["2024-10-04T01:00:00Z", "default", "base", "fa" * 6, "1", "5", "0", "2"]
    hours = ("--by", "hour", "--json", "--data", tmp_path / "data")
    for limits, found in (
        (("--from", "2024-10-04T00:00"), [0, 1]),
        (("--from", "2024-10-04T00:59:59"), [0, 1]),  # a part of an hour is all of it
        (("--from", "2024-10-04T01:00"), [1]),
        (("--to", "2024-10-04T01:00"), [0]),
        (("--to", "2024-10-04T03:00+02:00"), [0]),
        (("--to", "2024-10-04"), []),
    ):
        lines = livery("usage", *limits, *hours).json()["data"]
        assert [line["hour"] for line in lines] == [f"2024-10-04T0{hour}:00:00Z" for hour in found], limits


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        ((), "nothing was used yet"),
        (("--tenant", "nobody"), "nothing was used with --tenant nobody; without, --by tenant,"),
        (("--key-id", "k1", "--from", "2026-01-01"), "nothing was used with --from 2026-01-01 --key-id k1;"),
    ],
)
def test_a_report_without_a_line_says_why(livery: Livery, tmp_path: Path, filters: tuple[str, ...], told: str) -> None:
    TenantStore.open(data_folder(tmp_path / "data") / "tenants.db").close()
    done = livery("usage", *filters, "--data", tmp_path / "data")
    assert (done.code, Counter(done.out.split())["requests"]) == (0, 1)
    assert told in done.err
    table = livery("usage", *filters, "--csv", "--data", tmp_path / "data")
    assert table.out.splitlines() == ["day,requests,prompt_tokens,cached_tokens,completion_tokens"]
    assert told in table.err


def test_a_place_without_usage_is_named_with_a_remedy(livery: Livery, tmp_path: Path) -> None:
    for folder in (tmp_path / "none", data_folder(tmp_path / "data")):
        done = livery("usage", "--data", folder)
        assert (done.code, done.out) == (1, "")
        assert f"{folder} holds no usage (tenants.db); give the folder that `livery serve` has" in done.err
    assert not (tmp_path / "none").exists()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tenants.db").write_text("no database at all, but long enough to be read as one" * 99)
    broken = livery("usage", "--data", tmp_path / "broken")
    assert broken.code == 1
    assert "restore a backup" in broken.err
    nobody = livery("usage", "--url", "http://127.0.0.1:1")
    assert nobody.code == 1
    assert "is `livery serve` running there?" in nobody.err
    assert livery("usage", "--url", "http://127.0.0.1:1", "--data", tmp_path).code == 2
