"""`livery adapters --data`: what only a folder can do, what keeps a command from working, and that nothing is left."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import msgspec
import pytest

from api.peft_files import damage_weights, make_adapter
from cli.conftest import Livery
from cli.folders import BASE, data_folder, two_adapters
from livery.data_folder import DataFolder, KnownBase
from livery_adapters.registry.migrations import VERSION_TABLE

FILES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return two_adapters(tmp_path_factory.mktemp("made"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return data_folder(tmp_path / "data")


def stored(data: Path) -> set[str]:
    return {folder.name for folder in (data / "adapters" / "sha256").glob("??/*")}


def test_a_folder_whose_server_keeps_things_elsewhere_is_checked_against(
    tmp_path: Path, made: tuple[Path, Path], livery: Livery
) -> None:
    """A check asks neither the registry nor the object store."""
    known = msgspec.structs.replace(BASE, registry="postgresql://db/livery", blob_store="s3://bucket/livery")
    data = data_folder(tmp_path / "data", known)
    assert livery("adapters", "check", made[0], "--data", data, "--json").json()["ok"]


def test_what_was_retired_is_collected_and_what_is_named_stays(
    data: Path, made: tuple[Path, Path], livery: Livery
) -> None:
    digests = [
        livery("adapters", "add", name, source, "--data", data, "--json").json()["digest"]
        for name, source in zip(("stays", "goes"), made, strict=True)
    ]
    assert livery("adapters", "rm", "goes", "--data", data).code == 0
    answer = livery("adapters", "gc", "--data", data, "--json").json()
    assert answer == {"versions_dropped": 0, "blobs_removed": [digests[1]], "shared_blobs_removed": []}
    assert stored(data) == {digests[0]}
    assert "0 versions removed" in livery("adapters", "gc", "--data", data).out


def test_files_of_another_registry_are_not_garbage(
    data: Path, made: tuple[Path, Path], livery: Livery, tmp_path: Path
) -> None:
    digest = livery("adapters", "add", "pirate", made[0], "--data", data, "--json").json()["digest"]
    other = f"sqlite:///{tmp_path / 'other.db'}"
    for verb in (["gc"], ["ls"], ["add", "corsair", made[1]]):
        done = livery("adapters", *verb, "--data", data, "--registry", other)
        assert (done.code, "belong to another registry" in done.err) == (1, True), done
    done = livery("serve", "--model", BASE.model, "--data", data, "--registry", other)
    assert (done.code, "belong to another registry" in done.err) == (2, True), done
    assert DataFolder(data).base() == BASE
    assert stored(data) == {digest}


def test_nothing_is_added_to_a_folder_where_the_registrys_servers_do_not_look(
    data: Path, made: tuple[Path, Path], livery: Livery, tmp_path: Path
) -> None:
    registry = ("--registry", f"sqlite:///{data / 'livery.db'}")
    assert livery("adapters", "add", "pirate", made[0], "--data", data, *registry).code == 0
    job = data_folder(tmp_path / "job")
    done = livery("adapters", "add", "pirate", made[1], "--data", job, *registry)
    assert (done.code, "none of the files of the 1 versions" in done.err, "--url" in done.err) == (1, True, True), done
    assert len(livery("adapters", "versions", "pirate", "--data", data, "--json").json()["data"]) == 1
    assert livery("adapters", "add", "pirate", made[1], "--data", data, *registry).code == 0


def test_old_versions_are_dropped_when_asked(data: Path, made: tuple[Path, Path], livery: Livery) -> None:
    for source in made:
        livery("adapters", "add", "pirate", source, "--data", data)
    assert livery("adapters", "gc", "--data", data, "--keep-versions", "2", "--json").json()["versions_dropped"] == 0
    answer = livery("adapters", "gc", "--data", data, "--keep-versions", "1", "--json").json()
    assert (answer["versions_dropped"], len(answer["blobs_removed"])) == (1, 1)
    history = livery("adapters", "versions", "pirate", "--data", data, "--json").json()["data"]
    assert [version["version"] for version in history] == [2]


def test_a_profile_over_the_base_is_added_exported_and_added_again(data: Path, tmp_path: Path, livery: Livery) -> None:
    profile = tmp_path / "clerk.yaml"
    profile.write_text("system_prompt: You are a clerk.\n")
    added = livery("adapters", "add", "clerk", "base", "--profile", profile, "--data", data, "--json").json()
    assert (added["state"], added["peft_type"], added["proven"]) == ("ready", "NONE", True)
    assert "NONE" in livery("adapters", "show", "clerk", "--data", data).out
    assert livery("adapters", "export", "clerk", tmp_path / "out", "--data", data).code == 0
    again = livery("adapters", "add", "other", tmp_path / "out", "--data", data, "--json").json()
    assert again["digest"] == added["digest"]
    assert livery("adapters", "check", tmp_path / "out").code == 0


def test_a_version_is_exported_byte_for_byte(
    data: Path, made: tuple[Path, Path], tmp_path: Path, livery: Livery
) -> None:
    for source in made:
        livery("adapters", "add", "pirate", source, "--data", data)
    assert (
        "more: livery adapters versions pirate --after 2"
        in livery("adapters", "versions", "pirate", "--limit", 1, "--data", data).out
    )
    for version, source in ((["--version", "1"], made[0]), ([], made[1])):
        out = tmp_path / f"out{len(version)}"
        assert livery("adapters", "export", "pirate", out, *version, "--data", data).code == 0
        assert all((out / name).read_bytes() == (source / name).read_bytes() for name in FILES)
    again = livery("adapters", "export", "pirate", out, "--data", data)
    assert again.code == 1
    assert "not empty" in again.err
    assert livery("adapters", "add", "waiting", made[0], "--no-activate", "--data", data).code == 0
    unnamed = livery("adapters", "export", "waiting", tmp_path / "none", "--data", data)
    assert unnamed.code == 1
    assert "'waiting': it has no active version; name one with --version" in unnamed.err
    assert not (tmp_path / "none").exists()


def test_a_profile_is_kept_with_the_version_and_checked_as_the_server_would(
    data: Path, made: tuple[Path, Path], tmp_path: Path, livery: Livery
) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text("temperature: 0.2\nmax_tokens: 64\n")
    add = ["adapters", "add", "calm", made[0], "--data", data, "--profile", file]
    assert livery(*add, "--json").json()["profile"] == {"temperature": 0.2, "max_tokens": 64}
    out = tmp_path / "out"
    assert livery("adapters", "export", "calm", out, "--data", data).code == 0
    assert (out / "profile.yaml").read_text() == file.read_text()
    plain = livery("adapters", "add", "calm", made[0], "--data", data, "--json").json()
    assert plain["version"] == 2  # the same weights, another version
    again = livery("adapters", "profile", "calm", file, "--data", data, "--json").json()
    assert (again["version"], again["profile"]) == (1, {"temperature": 0.2, "max_tokens": 64})
    assert livery("adapters", "profile", "calm", "--data", data).out == file.read_text()
    late = livery("adapters", "profile", "calm", file, "--expected-generation", 1, "--data", data)
    assert (late.code, "generation" in late.err) == (1, True)
    file.write_text("chat_template: adapter\n")
    assert livery("adapters", "profile", "calm", file, "--data", data).code == 1  # there is none
    for content, words in (
        ("temprature: 1", "temprature"),
        ("temperature: hot", "temperature"),
        ("- a", "profile"),
        ("a: [", "YAML"),
    ):
        file.write_text(content)
        done = livery(*add)
        assert done.code == 1
        assert str(file) in done.err
        assert words in done.err
    done = livery("adapters", "add", "calm", made[0], "--data", data, "--profile", tmp_path / "none.yaml")
    assert (done.code, "No such file" in done.err) == (1, True)
    over_http = livery("adapters", "add", "calm", made[0], "--url", "http://127.0.0.1:9", "--profile", file)
    assert over_http.code == 1


def test_nothing_is_left_of_what_is_refused(
    data: Path, made: tuple[Path, Path], tmp_path: Path, livery: Livery
) -> None:
    bad = damage_weights(make_adapter(tmp_path / "bad"))
    assert livery("adapters", "add", "bad", bad, "--data", data).code == 1
    high = livery("adapters", "add", "high", made[1], "--data", data, "--max-rank", "2")
    assert (high.code, "rank 3" in high.err, "--max-rank" in high.err) == (1, True, True)
    large = livery("adapters", "add", "large", made[1], "--data", data, "--max-adapter-bytes", "1KiB")
    assert (large.code, "over the limit of 1024 bytes; raise --max-adapter-bytes" in large.err) == (1, True)
    assert livery("adapters", "ls", "--data", data, "--json").json()["data"] == []
    assert stored(data) == set()
    assert list((data / "adapters" / "incoming").iterdir()) == []


def test_a_folder_that_can_not_be_used_is_named(
    data: Path, made: tuple[Path, Path], tmp_path: Path, livery: Livery
) -> None:
    def said(*arguments: object, folder: Path) -> str:
        done = livery("adapters", *arguments, "--data", folder)
        assert done.code == 1, done
        assert str(folder) in done.err
        return done.err

    assert "not a folder" in said("ls", folder=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert "holds no adapters (livery.db)" in said("ls", folder=data)
    assert "name it with --model" in said("add", "x", made[0], folder=tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()
    elsewhere = KnownBase(BASE.name, BASE.digest, BASE.model, BASE.shapes, "postgresql://me@db.example/livery")
    DataFolder(data).write_base(elsewhere)
    assert "postgresql://me@db.example/livery; give its URL with --registry" in said("ls", folder=data)
    (data / "base.json").write_text("{")
    assert "base.json can't be read" in said("add", "x", made[0], folder=data)
    (tmp_path / "file").touch()
    assert "not a folder" in said("ls", folder=tmp_path / "file")


def test_a_registry_that_can_not_be_read_is_named(data: Path, made: tuple[Path, Path], livery: Livery) -> None:
    livery("adapters", "add", "x", made[0], "--data", data)
    with sqlite3.connect(data / "livery.db") as database:
        database.execute(f"update {VERSION_TABLE} set version_num = '9999'")
    newer = livery("adapters", "ls", "--data", data)
    assert (newer.code, "9999" in newer.err, "install" in newer.err) == (1, True, True)
    for suffix in ("", "-wal", "-shm"):
        (data / f"livery.db{suffix}").unlink(missing_ok=True)
    (data / "livery.db").write_bytes(b"not a database" * 1000)
    assert livery("adapters", "ls", "--data", data).code == 1
    unknown = livery("adapters", "ls", "--data", data, "--registry", "mysql://host/db")
    assert (unknown.code, "mysql" in unknown.err) == (1, True)


def test_nobody_can_prefetch_without_a_server(data: Path, made: tuple[Path, Path], livery: Livery) -> None:
    livery("adapters", "add", "x", made[0], "--data", data)
    done = livery("adapters", "prefetch", "x", "--data", data)
    assert done.code == 1
    assert "--url" in done.err
    assert "pin" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["ls", "--url", "http://127.0.0.1:9", "--data", "x"],
        ["ls", "--registry", "postgresql://host/db"],
        ["gc"],
        ["export", "x", "out"],
        ["merge", "x", "a=1", "b=1"],
        ["merge", "x", "a=much", "--data", "x"],
        ["alias", "x", "a=0", "--data", "x"],
        ["alias", "x", "a=nan", "--data", "x"],
        ["alias", "x", "=1", "--data", "x"],
        ["alias", "x", "a", "--delete", "--data", "x"],
        ["alias", "x", "a", "--sticky", "mood", "--data", "x"],
        ["alias", "x", "--sticky", "key", "--data", "x"],
        ["alias", "x", "--delete", "--sticky", "key", "--data", "x"],
        ["alias", "x", "--expected-generation", "3", "--data", "x"],
        ["profile", "x", "--expected-generation", "3", "--data", "x"],
        ["add", "x"],
        ["add", "x", "y", "--prove"],
        ["add", "x", "y", "--approximate", "0"],
        ["check", "x", "--verify-with-peft"],
        ["check", "x", "--data", "x", "--model", "y"],
        ["rm", "x", "--drain", "-1"],
        ["paint"],
    ],
)
def test_what_can_not_be_meant_is_a_usage_error(livery: Livery, arguments: list[str]) -> None:
    done = livery("adapters", *arguments)
    assert done.code == 2
    assert done.err
    assert done.out == ""


def test_a_check_without_a_base_judges_the_files(made: tuple[Path, Path], tmp_path: Path, livery: Livery) -> None:
    report = livery("adapters", "check", made[0], "--json").json()
    assert (report["ok"], report["files"]["adapted"], report["files"]["max_rank"]) == (True, 4, 2)
    shown = livery("adapters", "check", made[0]).out
    assert "ok" in shown
    assert "--model" in shown
    bad = damage_weights(make_adapter(tmp_path / "bad"))
    refused = livery("adapters", "check", bad, "--json")
    assert (refused.code, json.loads(refused.out)["code"]) == (1, "nonfinite_weights")
    assert "refused (nonfinite_weights)" in livery("adapters", "check", bad).err


def test_a_check_against_a_folders_base_keeps_nothing(data: Path, made: tuple[Path, Path], livery: Livery) -> None:
    before = sorted(path.name for path in data.rglob("*"))
    answer = livery("adapters", "check", made[0], "--data", data, "--json").json()
    assert answer["ok"] is True
    assert answer["coverage"]["adapted"] == 4
    assert answer["coverage"]["exact"] is None
    assert sorted(path.name for path in data.rglob("*")) == before
    high = livery("adapters", "check", made[1], "--data", data, "--max-rank", "2", "--json")
    assert (high.code, json.loads(high.out)["code"]) == (1, "rank_over_limit")


@pytest.mark.parametrize("against", ["files", "base"])
def test_a_check_goes_by_the_size_that_is_allowed(
    against: str, data: Path, made: tuple[Path, Path], livery: Livery
) -> None:
    check = ["adapters", "check", made[0], "--json", *(["--data", data] if against == "base" else [])]
    refused = livery(*check, "--max-adapter-bytes", "1KiB")
    assert (refused.code, json.loads(refused.out)["code"]) == (1, "too_large")
    assert "1024" in refused.out
    assert "--max-adapter-bytes" in refused.out
    assert livery(*check, "--max-adapter-bytes", "1MiB").json()["ok"]
    unread = livery(*check, "--max-adapter-bytes", "much")
    assert (unread.code, "'much' is no number of bytes" in unread.err) == (2, True)


def test_weights_over_the_limits_are_pushed_where_these_are_raised(
    data: Path, made: tuple[Path, Path], livery: Livery
) -> None:
    livery("adapters", "add", "pirate", made[1], "--data", data)
    push = ["adapters", "push", "pirate", made[1], "--data", data]
    assert "--max-adapter-bytes" in livery(*push, "--max-adapter-bytes", "1KiB").err
    assert "rank 3" in livery(*push, "--max-rank", "2").err
    assert livery(*push, "--max-rank", "3", "--max-adapter-bytes", "1MiB").code == 0


def test_a_check_names_the_folder_it_stands_in(tmp_path: Path, livery: Livery, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nothing-here").mkdir()
    monkeypatch.chdir(tmp_path / "nothing-here")
    done = livery("adapters", "check", ".")
    assert done.code == 1
    assert "'nothing-here'" in done.err
