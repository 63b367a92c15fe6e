"""The command line as a user runs it: what it prints, where it fails, and how it stops."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
from pydantic import ByteSize
from safetensors.torch import load_file

from api.peft_files import damage_weights, make_adapter
from cli.conftest import Livery
from cli.processes import ENVIRON, run, serving, url_in
from engine.families import save
from livery.commands.doctor import EXTRAS, Finding, extra_package
from livery.engine.compiler import find_compiler

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good adapter and one with a NaN."""
    root = tmp_path_factory.mktemp("adapters")
    make_adapter(root / "good")
    damage_weights(shutil.copytree(root / "good", root / "bad"))
    return root


def test_serve_says_what_it_serves_and_its_examples_work_as_printed(folder: Path, tmp_path: Path) -> None:
    environ = {"LIVERY_PREFIX_CACHE": "false", "LIVERY_MAX_RUNING": "3", "LIVERY_SERVICE_HOST": "10.96.0.7"}
    address = tmp_path / "address"
    given = ("--speculate", "4", "--address-file", str(address))
    with serving(folder, tmp_path, *given, **environ) as (process, printed):
        assert address.exists()
        assert "good" in printed
        assert "asked for: --speculate 4 --no-prefix-cache\n" in printed
        assert re.search(r"bad\s+failed: .*NaN", printed)
        curl = printed[printed.index("curl ") : printed.index("or in Python")]
        answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=60, check=True)
        assert json.loads(answer.stdout)["model"] == "good"
        snippet = printed[printed.index("from openai") : printed.index("Ctrl-C")]
        said = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, timeout=60, check=True)
        assert said.stdout.strip()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert not address.exists()
        assert process.stderr is not None
        log = process.stderr.read()
    assert log.count("WARNING livery.serve LIVERY_MAX_RUNING is set") == 1
    assert "LIVERY_SERVICE_HOST" not in log


def test_serve_ends_with_an_error_when_its_engine_dies(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path, FAKE_DIES="yes") as (process, printed):
        body = {"prompt": "Hello", "max_tokens": 5}
        answer = httpx.post(f"{url_in(printed)}/v1/completions", json=body)
        assert answer.status_code == 500
        assert "engine stopped" in answer.json()["error"]["message"]
        assert process.wait(30) == 2
        assert process.stderr is not None
        said = process.stderr.read()
    assert "ERROR livery.serve the engine died and the server stops: the fake engine is stopped" in said
    assert said.endswith("error: the fake engine is stopped\n")
    assert "Traceback" not in said


def test_the_end_of_the_engine_is_no_signal_so_that_the_first_one_after_it_hurries_nobody(
    folder: Path, tmp_path: Path
) -> None:
    with serving(folder, tmp_path, FAKE_DIES="yes") as (process, printed):
        assert process.stderr is not None
        url = httpx.URL(url_in(printed))
        with socket.create_connection((url.host, url.port or 0), timeout=30) as upload:
            upload.sendall(
                b"POST /v1/adapters/slow/versions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 1000\r\n"
                b"content-type: multipart/form-data; boundary=x\r\nexpect: 100-continue\r\n\r\n"
            )
            assert upload.recv(100).startswith(b"HTTP/1.1 100"), (
                "its body is waited for, and the server's end waits too"
            )
            assert httpx.post(url.join("/v1/completions"), json={"prompt": "Hello", "max_tokens": 5}).status_code == 500
            assert any("the engine died and the server stops" in line for line in process.stderr)
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 2, "by the engine's end, not by a signal"
        assert "told to stop twice" not in process.stderr.read()


def test_serve_with_a_key_prints_examples_that_read_it_from_the_environment(folder: Path, tmp_path: Path) -> None:
    with serving(folder, tmp_path, LIVERY_API_KEY="sk-test-key") as (_, printed):
        assert "sk-test-key" not in printed
        curl = printed[printed.index("curl ") : printed.index("or in Python")]
        environ = {**ENVIRON, "LIVERY_API_KEY": "sk-test-key"}
        for command in (
            ["bash", "-c", curl],
            [sys.executable, "-c", printed[printed.index("import os") :].split("\n\n")[0]],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ, check=True)
            assert done.stdout.strip()
            assert "invalid_api_key" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "m", "--host", "0.0.0.0"], ["0.0.0.0", "--api-key", "--insecure-no-auth"]),
        (["--model", "no/such/thing"], ["no/such/thing", "not found"]),
        (["--model", "smollm2-135m-instruct", "--adapters", "/no/such"], ["--adapters /no/such", "create it"]),
        (["--model", "smollm2-135m-instruct", "--served-model-name", "模型"], ["模型", "--served-model-name"]),
        (["--model", "no/such/thing", "--allow-source", "ftp://x"], ["--allow-source", "'ftp://x'", "hf://ORG/NAME"]),
        (["--model", "m", "--port", "x"], ["--port", "'x'"]),
        (["--model", "m", "--data", __file__], [f"data folder {__file__}", "exists", "--data DIR"]),
        (["--model", "m", "--data", f"{__file__}/data"], [f"{__file__}/data", "Not a directory", "--data DIR"]),
        (["--model", "m", "--data", "~nobody-here/data"], ["--data", "nobody-here", "whole path"]),
        ([], ["--model is needed"]),
    ],
)
def test_what_keeps_a_server_from_starting_is_one_line(arguments: list[str], words: list[str], livery: Livery) -> None:
    done = livery("serve", *(["--port", "0"] if "--port" not in arguments else []), *arguments)
    assert done.code == 2
    assert done.err.startswith("error:")
    assert all(word in done.err for word in words), done.err


def test_a_port_in_use_is_found_before_the_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("serve", "--model", "m", "--port", port)
    assert done.returncode == 2
    assert done.stderr.startswith("error:")
    assert "Traceback" not in done.stderr
    assert f"--port {port}" in done.stderr


def test_doctor_names_device_dtype_kernels_and_why(livery: Livery) -> None:
    found = {entry["what"]: entry for entry in livery("doctor", "--json").json()}
    for what in (
        "livery",
        "torch",
        "transformers",
        "device",
        "dtype",
        "attention",
        "kernels",
        "compiler",
        "memory",
        *EXTRAS,
    ):
        assert found[what]["found"], what
    assert found["device"]["why"]
    assert "device" in run("doctor").stdout


def test_every_bench_command_says_in_a_line_what_it_is(livery: Livery) -> None:
    shown = livery("bench", "--help").out
    commands = {line.split()[1]: line for line in shown.splitlines() if line.startswith("│ ")}
    assert "Run a suite on a server: chaos, scale, smoke, soak, standard. " in commands["suite"]
    assert "Exit status" not in shown


def test_doctor_names_the_compiler_that_the_kernels_are_built_with(
    livery: Livery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiler() -> dict[str, str]:
        (found,) = [entry for entry in livery("doctor", "--json").json() if entry["what"] == "compiler"]
        return {"found": found["found"], "why": found["why"]}

    monkeypatch.setenv("CXX", "env LC_ALL=C c++")  # as with ccache: a command and its arguments
    found = compiler()
    assert found["found"] == "env LC_ALL=C c++"
    assert found["why"].startswith(find_compiler().version)
    monkeypatch.setenv("CXX", "/nonexistent/c++")
    found = compiler()
    assert found["found"] == "none"
    assert "/nonexistent/c++ could not be run" in found["why"]
    monkeypatch.setenv("CXX", "c++ '")
    assert "No closing quotation" in compiler()["why"]


@pytest.mark.parametrize("name", EXTRAS)
def test_doctor_knows_the_packages_of_extras(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oldest, what, remedy = EXTRAS[name]
    needed = ".".join(map(str, oldest))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (extra,) = [extra for extra in extras if f"livery[{extra}]" in remedy]
    assert re.fullmatch(rf"{name}(\[\w+\])?>={needed}", extras[extra][0])

    def found(installed: str | None) -> Finding:
        folder = tmp_path / (installed or "none")
        if installed:
            described = folder / f"{name}-{installed}.dist-info"
            described.mkdir(parents=True)
            (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {installed}\n")
        with monkeypatch.context() as context:
            context.setattr(sys, "path", [str(folder)])
            return extra_package(name)

    assert found(None) == (name, "not installed", f"optional, for {what}: {remedy}")
    old = f"{oldest[0] - 1}.99.1"
    assert found(old) == (name, old, f"too old for {what}, {needed} or later: {remedy}")
    for recent in (f"{needed}.0", f"{oldest[0] + 1}.0rc1"):
        assert found(recent) == (name, recent, f"for {what}")


def test_doctor_goes_by_the_settings_that_serve_would_have(
    tmp_path: Path, livery: Livery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(*arguments: str, code: int = 0) -> dict[str, tuple[str, str]]:
        told = livery("doctor", "--json", "--device", "cpu", *arguments).json(code)
        return {entry["what"]: (entry["found"], entry["why"]) for entry in told}

    with monkeypatch.context() as environ:
        environ.setenv("LIVERY_KERNELS", "torch")
        asked = found()
    assert asked["device"] == ("cpu", "asked for with --device cpu")
    assert asked["kernels"] == ("torch", "asked for with --kernels torch")
    assert asked["attention"][0] == "paged, torch"
    (tmp_path / "livery.yaml").write_text("dtype: bfloat16\n")
    halved = found("--config", str(tmp_path / "livery.yaml"))
    assert halved["dtype"] == ("bfloat16", "asked for with --dtype bfloat16")
    assert halved["kernels"] == ("torch", "the native kernels compute in float32; --dtype float32 uses them")
    exact = found("--config", str(tmp_path / "livery.yaml"), "--dtype", "float32")
    assert exact["dtype"][0] == "float32"
    assert "--dtype" not in exact["kernels"][1]
    knobs = (
        "--decoder",
        "transformers",
        "--threads",
        "3",
        "--speculate",
        "4",
        "--no-prefix-cache",
        "--weights",
        "int8",
    )
    told = found(*knobs, "--deterministic", "--decoder", "auto", "--kv-memory", "512MiB")
    assert {name: told[name][0] for name in ("decoder", "threads", "speculation", "prefix cache", "weights")} == {
        **{"decoder": "fused", "threads": "3", "speculation": "at most 4 tokens", "prefix cache": "off"},
        "weights": "int8",
    }
    assert [told[name][0] for name in ("deterministic", "KV cache", "adapters")] == ["on", "512.0MiB", "256.0MiB"]
    refused = found("--deterministic", *knobs, code=1)["engine"]
    assert refused == ("unusable", "--deterministic needs the fused decoder: leave --decoder transformers out")
    wrong = livery("doctor", "--device", "gpu")
    assert wrong.code == 2
    assert "--device is 'gpu'" in wrong.err


@pytest.mark.parametrize("family", ["llama-dynamic-rope", "qwen3-moe"])
def test_doctor_reads_a_models_headers_alone(family: str, tmp_path: Path, livery: Livery) -> None:
    path = save(family, tmp_path)
    numbers = sum(tensor.numel() for tensor in load_file(path / "model.safetensors").values())
    with (path / "model.safetensors").open("r+b") as file:
        file.truncate(8 + int.from_bytes(file.read(8), "little"))
    told = livery("doctor", "--json", "--device", "cpu", "--model", path).json()
    (found,) = [entry["found"] for entry in told if entry["what"] == "base"]
    assert found == f"at most {ByteSize(4 * numbers).human_readable()}"


def test_the_tree_shows_every_command_and_no_torch_is_loaded_for_it() -> None:
    code = (
        "import sys\n"
        "from livery.cli import main\n"
        "for argument in ('--help', 'version', '--version'):\n"
        "    sys.argv = ['livery', argument]\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as ended:\n"
        "        assert not ended.code, ended.code\n"
        "    print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRON, check=True)
    shown, *rest = re.split(r"^False\n", done.stdout, flags=re.MULTILINE)
    for command in ("serve", "doctor", "adapters", "bench", "version"):
        assert command in shown
    assert rest[0].strip().count(".") == 2
    assert rest[1:] == [rest[0], ""]
