"""What is built, converted and started for llama.cpp; nothing is downloaded or compiled here."""

from __future__ import annotations

import os
import sys
import tarfile
from array import array
from io import BytesIO, StringIO
from pathlib import Path

import pytest
from rich.console import Console

from livery_loadtest.bars import Verdict
from livery_loadtest.machine import describe_machine
from livery_loadtest.options import Options
from livery_loadtest.origin import Origin
from livery_loadtest.peers import EnvironmentFailed, llama_cpp
from livery_loadtest.peers.launching import gguf_file
from livery_loadtest.peers.llama_cpp import LlamaCppEnvironment, llama_cpp_command, lora_fields, unpack
from livery_loadtest.peers.ratios import MIXED, SINGLE, ratios
from livery_loadtest.record import Health, Record, Run
from livery_loadtest.report.result import Result, Server, make_result
from livery_loadtest.script import Planned, Script
from livery_loadtest.servers import ServerFailed
from livery_loadtest.session import find_served
from livery_loadtest.spec import Workload
from livery_loadtest.target import Target
from loadtest.driving import drive
from loadtest.known_server import KnownServer

SILENT = Console(file=StringIO())


def built(folder: Path, converter: str) -> LlamaCppEnvironment:
    """An environment that counts as built, with a converter of our own."""
    environment = LlamaCppEnvironment(folder, "1.2.3")
    for file in (environment.server, environment.converter):
        file.parent.mkdir(parents=True)
        file.write_text(converter)
    (folder / ".complete").write_text("1.2.3")
    return environment


def test_only_a_finished_build_of_this_version_counts(tmp_path: Path) -> None:
    environment = built(tmp_path, "")
    assert environment.ready()
    assert not LlamaCppEnvironment(tmp_path, "1.2.4").ready()
    environment.server.unlink()
    assert not environment.ready()


def test_an_archive_is_unpacked_without_its_outermost_folder_and_never_beside_it(tmp_path: Path) -> None:
    def pack(name: str, member: str) -> Path:
        with tarfile.open(tmp_path / name, "w:gz") as packed:
            entry = tarfile.TarInfo(member)
            entry.size = 2
            packed.addfile(entry, BytesIO(b"hi"))
        return tmp_path / name

    unpack(pack("good.tar.gz", "package-1/vendor/file"), tmp_path / "source")
    assert (tmp_path / "source" / "vendor" / "file").read_text() == "hi"
    with pytest.raises(EnvironmentFailed, match="delete it and try again"):
        unpack(pack("bad.tar.gz", "../outside"), tmp_path / "other")
    assert not (tmp_path / "outside").exists()
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "good.tar.gz").read_bytes()[:40])
    with pytest.raises(EnvironmentFailed, match=r"cut\.tar\.gz"):
        unpack(tmp_path / "cut.tar.gz", tmp_path / "third")


def test_adapters_are_converted_once_each_and_again_when_they_change(tmp_path: Path) -> None:
    script = "import sys; open(sys.argv[sys.argv.index('--outfile') + 1], 'w').write(' '.join(sys.argv))"
    environment = built(tmp_path / "llama", script)
    adapters = {"a": tmp_path / "a", "b": tmp_path / "b"}
    for folder in adapters.values():
        folder.mkdir()
        (folder / "adapter_model.safetensors").touch()
    files = environment.converted(tmp_path, adapters, tmp_path / "gguf", SILENT)
    assert list(files) == ["a", "b"]
    assert files["b"].read_text().endswith(str(adapters["b"]))
    files["a"].write_text("kept")
    files["b"].write_text("old")
    os.utime(files["b"], (1, 1))
    environment.converted(tmp_path, adapters, tmp_path / "gguf", SILENT)
    assert files["a"].read_text() == "kept"
    assert files["b"].read_text() != "old"


def test_a_failing_conversion_says_why_and_leaves_no_file(tmp_path: Path) -> None:
    environment = built(tmp_path / "llama", "import sys; sys.exit('no such tensor')")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_model.safetensors").touch()
    with pytest.raises(EnvironmentFailed, match="no such tensor"):
        environment.converted(tmp_path, {"a": tmp_path / "a"}, tmp_path / "gguf", SILENT)
    assert not list((tmp_path / "gguf").glob("*.gguf"))


def test_the_peer_gets_a_slot_for_every_stream_and_all_adapters() -> None:
    text = " ".join(llama_cpp_command(Path("srv"), Path("m.gguf"), "base", 81, [Path("/a"), Path("/b")], 16))
    assert "--model m.gguf --alias base" in text
    assert "--parallel 16 --ctx-size 32768" in text
    assert "--lora /a,/b --lora-init-without-apply" in text
    assert "lora" not in " ".join(llama_cpp_command(Path("srv"), Path("m"), "base", 81, [], 16))


def test_weights_are_not_rearranged_for_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, times in ((True, 1), (False, 0)):
        monkeypatch.setattr(llama_cpp, "has_amx", lambda has=has: has)
        command = llama_cpp_command(Path("srv"), Path("m.gguf"), "base", 81, [], 1)
        assert command.count("--no-repack") == times


def test_only_gguf_files_can_be_compared(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.touch()
    assert gguf_file(str(file)) == file
    with pytest.raises(ServerFailed, match="not a GGUF file"):
        gguf_file(str(tmp_path))


async def test_adapters_are_chosen_by_a_field_of_the_request(pair: tuple[KnownServer, KnownServer]) -> None:
    server, _ = pair
    server.models = ["base-l", "pirate", "json"]
    target = Target("llama.cpp", server.url, ("base-l", "pirate", "json"), lora_fields("base-l", ["pirate", "json"]))
    subject = await find_served(target, ["json"])
    assert (subject.base, subject.adapters) == ("base-l", ("json",))
    planned = [Planned(index, None, model, "hello", 3) for index, model in enumerate(subject.models)]
    run = await drive(Script(planned), target, Options(streams=1))
    assert [record.error for record in run.records] == [None, None]
    assert [request.get("lora") for request in server.seen] == [[{"id": 0, "scale": 0.0}], [{"id": 1, "scale": 1.0}]]
    assert lora_fields("base-l", []) == {}


def measured(workload: str, speeds: dict[str, float]) -> Result:
    """Two repeats of one request of 100 tokens on each target, `speeds` of them a second."""
    runs = []
    for target, speed in speeds.items():
        for repeat in range(2):
            planned = Planned(0, None, "a", "hello", 100)
            record = Record(planned, 0.0, finished=100 / speed, output_tokens=100, events=array("d", [0.1]))
            health = Health(1, 0.1, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))
            runs.append(Run(target, repeat, 0.0, 100 / speed, [record], health))
    servers = [Server(name=name, url="http://h") for name in speeds]
    return make_result(Workload(name=workload, requests=1), servers, runs, Origin("c", "d", "v", describe_machine()))


def test_every_livery_is_held_against_every_peer() -> None:
    mixed = {"livery": 90.0, "livery-int8": 60.0, "vllm": 20.0, "llama.cpp": 25.0}
    single = {"livery": 30.0, "livery-int8": 69.0, "llama.cpp": 60.0}
    found = ratios({MIXED: measured(MIXED, mixed), SINGLE: measured(SINGLE, single)}, bars=True)
    assert {ratio.name: (round(ratio.value.median, 2), ratio.verdict) for ratio in found} == {
        "mixed: livery / vllm": (4.5, Verdict.PASS),
        "mixed: livery / llama.cpp": (3.6, Verdict.AIM),
        "mixed: livery-int8 / vllm": (3.0, Verdict.FAIL),
        "mixed: livery-int8 / llama.cpp": (2.4, Verdict.PASS),
        "one-stream: livery / llama.cpp": (0.5, Verdict.PASS),
        "one-stream: livery-int8 / llama.cpp": (1.15, Verdict.AIM),
    }
    assert all(ratio.bar is None for ratio in ratios({MIXED: measured(MIXED, mixed)}, bars=False))


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent / "nowhere"))
    with pytest.raises(EnvironmentFailed, match="cmake is not installed; install cmake and a C"):
        LlamaCppEnvironment(tmp_path).ensure(SILENT)
