"""`livery keys` and `livery tenants`: in a data folder, and against the admin API of a server."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import pytest

from api.peft_files import make_adapter
from cli.conftest import Done, Livery
from cli.folders import BASE, data_folder, use
from cli.processes import serving
from livery.commands.tenants_reach import every_page

KEY = re.compile(r"lv-([a-z2-7]{8})-[A-Za-z0-9_-]{43}")
ADMIN = "sk-admin-1"
BY_ALL = ("--by", "hour,tenant,key,adapter,version")
# What differs from run to run and from place to place.
VARYING = re.compile(r"\d{9,}\.\d+|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|lv-[a-z2-7]{8}-[\w-]{43}|\b[a-z2-7]{8}\b")


@pytest.fixture
def here(livery: Livery, tmp_path: Path) -> Callable[..., Done]:
    return lambda *arguments: livery(*arguments, "--data", tmp_path / "data")


def test_a_key_is_printed_alone_and_once(here: Callable[..., Done], tmp_path: Path) -> None:
    done = here("keys", "create", "--tenant", "acme", "--role", "owner", "--label", "CI", "--expires", "30d")
    assert done.code == 0
    key = done.out.strip()
    found = KEY.fullmatch(key)
    assert found  # a script may take all that is printed
    for told in ("tenant acme, who was made as well", "role owner", "good until", str(tmp_path / "data"), "only now"):
        assert told in done.err
    assert key not in done.err
    listed = here("keys", "ls")
    assert found[1] in listed.out
    assert key[12:] not in listed.out
    assert "valid" in listed.out


def test_a_key_has_the_rights_it_is_given(here: Callable[..., Done]) -> None:
    limits = ("--limit", "requests_per_minute=60", "--limit", "n=2")
    allow = ("--allow", "own,base", "--allow", "sql-*")
    before = time.time()
    made = here("keys", "create", "--tenant", "acme", *allow, *limits, "--expires", "12h", "--json").json()
    assert KEY.fullmatch(made.pop("key"))
    assert made.pop("tenant_created") is True
    (kept,) = here("keys", "ls", "--json").json()["data"]
    assert kept == made
    assert kept["allow"] == ["own", "base", "sql-*"]
    assert kept["limits"] == {"requests_per_minute": 60, "n": 2}
    assert kept["role"] == "user"
    assert before + 43200 <= kept["expires"] <= time.time() + 43200
    assert here("keys", "create", "--role", "admin", "--json").json()["tenant"] == "default"
    assert len(here("keys", "ls", "--tenant", "acme", "--json").json()["data"]) == 1


def test_a_flag_goes_before_the_other_ones_variable(
    livery: Livery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, url = tmp_path / "data", "http://127.0.0.1:9"
    assert livery("keys", "create", "--tenant", "acme", "--data", data).code == 0
    monkeypatch.setenv("LIVERY_DATA", str(data))
    assert len(livery("keys", "ls", "--json").json()["data"]) == 1
    asked = livery("keys", "ls", "--url", url)
    assert (asked.code, f"no answer from {url}" in asked.err) == (1, True), asked.err
    both = livery("keys", "ls", "--url", url, "--data", data)
    assert (both.code, "give one of them" in " ".join(both.err.split())) == (2, True), both.err
    monkeypatch.setenv("LIVERY_ADMIN_URL", url)
    assert f"no answer from {url}" in livery("tenants", "ls").err
    monkeypatch.delenv("LIVERY_DATA")
    assert len(livery("keys", "ls", "--data", data, "--json").json()["data"]) == 1


def test_keys_are_rotated_and_revoked(here: Callable[..., Done]) -> None:
    old = here("keys", "create", "--tenant", "acme", "--json").json()
    new = here("keys", "rotate", old["id"], "--grace", "60")
    assert KEY.fullmatch(new.out.strip())
    assert f"in place of {old['id']}, which ends in 60 s" in new.err
    kept = here("keys", "ls", "--json").json()["data"]
    assert [key["state"] for key in kept] == ["valid", "valid"]
    assert "is revoked" in here("keys", "revoke", kept[1]["id"]).out
    again = here("keys", "rotate", kept[1]["id"])
    assert again.code == 1
    assert "was revoked" in again.err


def test_tenants_come_and_go(here: Callable[..., Done]) -> None:
    assert here("tenants", "create", "acme", "--weight", "2", "--limit", "adapters=3").code == 0
    here("tenants", "create", "zeta")
    shown = here("tenants", "show", "acme", "--json").json()
    assert (shown["weight"], shown["limits"]) == (2.0, {"adapters": 3})
    here("tenants", "set", "acme", "--limit", "adapters=none", "--limit", "n=1", "--disabled")
    shown = here("tenants", "show", "acme", "--json").json()
    assert (shown["weight"], shown["limits"], shown["disabled"]) == (2.0, {"n": 1}, True)
    assert "disabled" in here("tenants", "ls").out
    assert "is deleted" in here("tenants", "rm", "acme").out
    assert [tenant["name"] for tenant in here("tenants", "ls", "--json").json()["data"]] == ["default", "zeta"]


def test_what_people_copy_is_never_folded(here: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    tenant = "acme-department-of-very-long-names-1234"
    made = here("keys", "create", "--tenant", tenant, "--role", "owner", "--expires", "30d", "--json").json()
    here("tenants", "set", tenant, "--disabled")
    listed = here("keys", "ls").out
    for word in (made["id"], tenant, "owner", "valid", "everything"):
        assert word in listed
    assert "limits" not in listed  # nobody has any
    here("tenants", "set", tenant, "--limit", "requests_per_minute=60", "--limit", "concurrent_requests=4")
    told = here("tenants", "ls").out
    assert tenant in told
    assert "disabled" in told
    here("keys", "create", "--tenant", tenant, "--allow", "own,base", "--limit", "n=2")
    monkeypatch.setenv("COLUMNS", "160")
    listed = here("keys", "ls").out
    assert "own, base" in listed
    assert "n=2" in listed


def test_a_tenant_is_kept_off_adapters_that_are_there(here: Callable[..., Done], tmp_path: Path) -> None:
    data_folder(tmp_path / "data")
    assert here("adapters", "add", "acme/sql", make_adapter(tmp_path / "made")).code == 0
    for verb in (("keys", "create", "--tenant", "acme"), ("tenants", "create", "acme")):
        done = here(*verb)
        assert done.code == 1
        assert "acme/sql" in done.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("keys", "create", "--tenant", "Acme"), "small letters"),
        (("keys", "create", "--tenant", "acme", "--role", "admin"), "every tenant"),
        (("keys", "create", "--tenant", "acme", "--expires", "soon"), "30d"),
        (("keys", "create", "--tenant", "acme", "--expires", "2001-01-01"), "expired already"),
        (("keys", "create", "--tenant", "acme", "--allow", "../x"), "allow-list"),
        (("keys", "create", "--tenant", "acme", "--limit", "speed=1"), "requests_per_minute"),
        (("tenants", "create", "acme", "--weight", "0"), "weight"),
    ],
)
def test_what_is_refused_is_said(here: Callable[..., Done], arguments: tuple[str, ...], told: str) -> None:
    done = here(*arguments)
    assert (done.code, done.out) == (1, "")
    assert told in done.err
    assert here("keys", "ls", "--json").json() == {"data": []}


@pytest.mark.parametrize("arguments", [("keys", "create", "--limit", "n"), ("tenants", "set", "acme")])
def test_what_can_not_be_asked(here: Callable[..., Done], arguments: tuple[str, ...]) -> None:
    assert here(*arguments).code == 2


@pytest.mark.parametrize(
    "command",
    [("keys", "ls"), ("tenants", "ls"), ("keys", "create"), ("usage",), ("adapters", "ls"), ("adapters", "gc")],
)
def test_whose_registry_is_elsewhere_says_where(livery: Livery, tmp_path: Path, command: tuple[str, ...]) -> None:
    folder = data_folder(tmp_path / "data", msgspec.structs.replace(BASE, registry="postgresql://db.example/livery"))
    done = livery(*command, "--data", folder)
    assert done.code == 1
    assert f"the registry of {folder}, with its " in done.err
    assert "is not in it but at postgresql://db.example/livery; give its URL with --registry" in done.err
    assert {file.name for file in folder.iterdir()} == {"base.json"}


def test_a_folder_that_is_no_servers(livery: Livery, tmp_path: Path) -> None:
    done = livery("keys", "ls", "--data", tmp_path / "none")
    assert done.code == 1
    assert "holds no tenants" in done.err
    assert not (tmp_path / "none").exists()


def test_without_a_place_it_is_that_of_a_server_without_one(
    livery: Livery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    done = livery("keys", "create", "--tenant", "acme")
    assert KEY.fullmatch(done.out.strip())
    assert (tmp_path / "livery" / "port-8000" / "tenants.db").exists()
    assert "port-8000" in done.err


def test_a_backup_has_tenants_and_keys(here: Callable[..., Done], livery: Livery, tmp_path: Path) -> None:
    secret = here("keys", "create", "--tenant", "acme", "--label", "CI").out.strip()
    here("tenants", "create", "zeta", "--weight", "3")
    (tmp_path / "data" / "livery.db").touch()  # a registry without adapters
    use(tmp_path / "data" / "tenants.db")
    out = tmp_path / "backup"
    assert "3 tenants, 1 keys, 2 rows of usage" in here("data", "backup", out).out
    assert secret[12:].encode() not in b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    told = livery("data", "restore", out, "--data", tmp_path / "new", "--json").json()
    assert (told["tenants"], told["keys"], told["usage_rows"]) == (3, 1, 2)
    for verb in (("keys", "ls"), ("tenants", "ls"), ("usage", *BY_ALL)):
        assert here(*verb, "--json").json() == livery(*verb, "--json", "--data", tmp_path / "new").json()
        assert here(*verb, "--json").json()["data"]
    assert livery("data", "restore", out, "--data", tmp_path / "new").code == 0  # it is there already
    livery("keys", "create", "--tenant", "zeta", "--data", tmp_path / "new")
    again = livery("data", "restore", out, "--data", tmp_path / "new")
    assert again.code == 1
    assert "not empty" in again.err


def test_usage_alone_is_not_written_over(here: Callable[..., Done], livery: Livery, tmp_path: Path) -> None:
    use(data_folder(tmp_path / "data") / "tenants.db")
    (tmp_path / "data" / "livery.db").touch()
    out, used = tmp_path / "backup", data_folder(tmp_path / "used")
    assert here("data", "backup", out).code == 0
    use(used / "tenants.db")
    refused = livery("data", "restore", out, "--data", used)
    assert refused.code == 1
    assert "it has tenants, keys or usage; restore into a new one" in refused.err
    assert len(livery("usage", *BY_ALL, "--data", used, "--json").json()["data"]) == 2


class Two(NamedTuple):
    """Two servers on one data folder, each in its own process. The first has the admin API."""

    data: Path
    urls: list[str]
    admin: str
    printed: str


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    folder = tmp_path_factory.mktemp("two")
    make_adapter(folder / "adapters" / "sql")
    data = folder / "data"
    admin = ("--admin-port", "0")
    with (
        serving(folder / "adapters", data, *admin, LIVERY_ADMIN_KEY=ADMIN, LIVERY_LOG_LEVEL="debug") as (first, said),
        serving(folder / "adapters", data) as (second, also_said),
    ):
        urls = [re.findall(r"http://127\.0\.0\.1:\d+", printed)[0] for printed in (said, also_said)]
        there = httpx.put(f"{urls[0]}/v1/adapters/taken/sql", json={"source": "sql"})
        assert there.status_code == 200
        found = re.search(r"admin API on (\S+)", said)
        assert found
        yield Two(data, urls, found[1], said)
        first.kill()
        second.kill()
        assert first.stderr is not None
        log = first.stderr.read()
    assert "GET /v1/models status=200" in log
    assert not KEY.search(log)
    assert ADMIN not in log


def ask(url: str, key: str) -> int:
    return httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code


def becomes(status: int, url: str, key: str) -> None:
    """Wait for a server to see what was done elsewhere."""
    deadline = time.monotonic() + 30
    while (found := ask(url, key)) != status:
        assert time.monotonic() < deadline, f"{url} still answers {found}"
        time.sleep(0.02)


def test_servers_follow_what_a_command_does_without_them(two: Two, livery: Livery) -> None:
    assert "No key is configured: everybody on this machine" in two.printed
    assert f"livery keys create --tenant NAME --data {two.data}" in two.printed.replace("\n", " ")
    here = ("--data", two.data)
    made = livery("keys", "create", "--tenant", "acme", *here, "--json").json()
    for url in two.urls:
        becomes(200, url, made["key"])
        becomes(401, url, "nope")
    rotated = livery("keys", "rotate", made["id"], "--grace", "300", *here, "--json").json()
    for url in two.urls:
        becomes(200, url, rotated["key"])
        assert ask(url, made["key"]) == 200
    livery("keys", "revoke", made["id"], *here)
    brief = livery("keys", "create", "--tenant", "acme", "--expires", "2s", *here, "--json").json()
    for url in two.urls:
        becomes(401, url, made["key"])
        assert ask(url, rotated["key"]) == 200
        becomes(401, url, brief["key"])
    livery("tenants", "set", "acme", "--disabled", *here)
    for url in two.urls:
        becomes(401, url, rotated["key"])


def test_the_same_verbs_have_the_same_answers_from_a_server_as_from_a_folder(
    two: Two, livery: Livery, tmp_path: Path
) -> None:
    verbs: list[tuple[str, ...]] = [
        ("tenants", "create", "blue", "--weight", "2"),
        ("tenants", "create", "blue"),
        ("tenants", "create", "Blue"),
        ("keys", "create", "--tenant", "blue", "--label", "CI", "--limit", "n=2", "--expires", "30d"),
        ("keys", "create", "--tenant", "green", "--role", "owner"),
        ("keys", "ls", "--tenant", "blue"),
        ("keys", "revoke", "nothere1"),
        ("tenants", "set", "blue", "--limit", "n=3"),
        ("tenants", "show", "blue"),
        ("tenants", "show", "nobody"),
        ("tenants", "rm", "blue"),
    ]

    def told(*arguments: object) -> list[Any]:
        answers = [livery(*verb, *more, *arguments) for verb in verbs for more in ((), ("--json",))]
        return [(done.code, VARYING.sub("…", done.out), done.err if done.code else "") for done in answers]

    assert told("--url", two.admin, "--key", ADMIN) == told("--data", tmp_path / "data")


def test_a_key_of_the_admin_api_holds_at_once_where_it_was_made(two: Two, livery: Livery) -> None:
    there = ("--url", two.admin, "--key", ADMIN, "--json")
    made = livery("keys", "create", "--tenant", "red", *there).json()
    assert ask(two.urls[0], made["key"]) == 200
    becomes(200, two.urls[1], made["key"])
    livery("keys", "revoke", made["id"], *there)
    assert ask(two.urls[0], made["key"]) == 401
    becomes(401, two.urls[1], made["key"])
    taken = livery("keys", "create", "--tenant", "taken", *there)
    assert taken.code == 1
    assert "taken/sql" in taken.err
    refused = livery("keys", "ls", "--url", two.admin, "--key", "nope")
    assert refused.code == 1
    assert "invalid API key" in refused.err


def test_the_admin_api_on_a_socket_is_its_users(tmp_path: Path, livery: Livery) -> None:
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    socket = tmp_path / "admin.sock"
    with serving(adapters, tmp_path / "data", "--admin-uds", str(socket)) as (_, printed):
        assert f"admin API on {socket}" in printed
        assert socket.stat().st_mode & 0o777 == 0o600
        assert KEY.fullmatch(livery("keys", "create", "--tenant", "acme", "--url", f"unix:{socket}").out.strip())
        # From the first key on only an admin's opens it; the folder is open to its user all the same.
        assert livery("keys", "ls", "--url", f"unix:{socket}").code == 1
        admin = livery("keys", "create", "--role", "admin", "--data", tmp_path / "data").out.strip()
        listing = ("keys", "ls", "--url", f"unix:{socket}", "--key", admin)
        deadline = time.monotonic() + 30
        while livery(*listing).code and time.monotonic() < deadline:
            time.sleep(0.05)
        assert livery(*listing).code == 0


def test_what_would_open_a_server_to_strangers_is_refused(here: Callable[..., Done], tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        done = here("serve", "--model", "smollm2-135m-instruct", "--port", "0", *arguments)
        assert (done.code, done.out) == (2, ""), done
        return done.err

    assert "livery keys create" in refused("--host", "0.0.0.0")
    assert "--admin-key" in refused("--admin-port", "0", "--admin-host", "0.0.0.0")
    here("keys", "create", "--tenant", "acme")
    # A key is asked for now, so the address is no reason any more; a tenant's key opens no admin API.
    assert "--ssl-keyfile" in refused("--host", "0.0.0.0", "--ssl-certfile", str(tmp_path / "none"))
    assert "--admin-key" in refused("--admin-port", "0", "--admin-host", "0.0.0.0")
    assert "both given" in refused("--admin-port", "0", "--admin-uds", str(tmp_path / "x"))


async def test_a_server_that_knows_no_pages_tells_all_at_once() -> None:
    asked: list[str] = []

    async def page(after: str) -> dict[str, Any]:
        asked.append(after)
        return {"data": [{"name": "acme"}]}

    assert await every_page(page) == {"data": [{"name": "acme"}]}
    assert asked == [""]
