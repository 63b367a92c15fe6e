"""Where a knob's value comes from, and what a wrong one is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from livery.commands.options import takes_settings
from livery.engine.base import EngineConfig
from livery.models import cache_dir
from livery.running.engine_knobs import ENGINE_KNOBS, asked_for, engine_config
from livery.settings import Settings, SettingsError, load_settings, usual_data_folder
from livery.variables import unread_variables
from livery_adapters.refusal import Limits
from livery_loadtest.peers import peers_folder


def test_flags_win_over_variables_and_those_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "livery.yaml"
    file.write_text("model: from-file\nport: 1\nhost: file.example\nmax-running: 3\n")
    environ = {"LIVERY_PORT": "2", "LIVERY_HOST": "env.example", "LIVERY_DEVICE": "", "OTHER": "x"}
    settings = load_settings({"port": "3", "device": None}, environ, file)
    assert (settings.model, settings.port, settings.host) == ("from-file", 3, "env.example")
    assert (settings.max_running, settings.device) == (3, "auto")


def test_the_home_folder_may_be_written_as_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/captain")
    settings = load_settings({"model": "m", "data": "~/kept"}, {"LIVERY_ADAPTERS": "~/crew"})
    assert settings.data_folder == Path("/home/captain/kept")
    assert settings.adapters == Path("/home/captain/crew")


def test_sizes_switches_and_levels_are_read_from_words() -> None:
    flags = {"model": "m", "kv_memory": "2GiB", "adapter_memory": "512MiB", "log_level": "DEBUG"}
    settings = load_settings(flags, {"LIVERY_INSECURE_NO_AUTH": "1"})
    assert settings.kv_memory == 2 << 30
    assert settings.adapter_memory == 512 << 20
    assert settings.insecure_no_auth
    assert settings.log_level == "debug"


def test_what_an_adapter_may_ask_for_is_set() -> None:
    assert load_settings({"model": "m"}, {}).adapter_limits == Limits()
    some = load_settings({"model": "m", "max_rank": "512"}, {"LIVERY_MAX_ADAPTER_BYTES": "8GiB"})
    assert some.adapter_limits == Limits(max_rank=512, max_weight_bytes=8 << 30)
    with pytest.raises(SettingsError, match="--max-adapter-bytes is '0'"):
        load_settings({"model": "m", "max_adapter_bytes": "0"}, {})


@pytest.mark.parametrize(
    ("flags", "variable", "on"),
    [([], None, True), (["--no-prefix-cache"], None, False), ([], "false", False), (["--prefix-cache"], "false", True)],
)
def test_what_is_on_by_default_can_be_turned_off(flags: list[str], variable: str | None, on: bool) -> None:
    found: list[Settings] = []
    app = typer.Typer()
    app.command()(takes_settings(found.append))
    done = CliRunner().invoke(app, ["--model", "m", *flags], env={"LIVERY_PREFIX_CACHE": variable})
    assert done.exit_code == 0, done.output
    assert [settings.prefix_cache for settings in found] == [on]


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        ({}, {}, ["--model", "needed"]),
        ({"model": "m", "port": "99999"}, {}, ["--port", "'99999'", "65535"]),
        ({"model": "m"}, {"LIVERY_MAX_RUNNING": "many"}, ["LIVERY_MAX_RUNNING", "'many'", "integer"]),
        ({"model": "m"}, {"LIVERY_PORT": "tcp://10.0.0.7:8000"}, ["LIVERY_PORT", "enableServiceLinks", "--port"]),
        ({"model": "m", "device": "gpu"}, {}, ["--device", "'gpu'", "cuda"]),
        ({"model": "m", "kv_memory": "lots"}, {}, ["--kv-memory", "'lots'", "4GiB"]),
        ({"model": "m", "dtype": "int4"}, {}, ["--dtype", "float32"]),
        ({"model": "m", "cors_origins": "foo"}, {}, ["--cors-origins", "'foo'", "https://app.example"]),
        ({"model": "m", "cors_origins": "https://a.example/"}, {}, ["'https://a.example/'", "without a slash"]),
        ({"model": "m", "cors_origins": "*,https://a.example:port"}, {}, ["'https://a.example:port'"]),
        ({"model": "m", "uds": "/s", "port": "8000"}, {}, ["--uds", "--port", "leave one out"]),
        ({"model": "m", "host": "::1"}, {"LIVERY_UDS": "/s"}, ["LIVERY_UDS", "--host", "leave one out"]),
    ],
)
def test_a_wrong_value_is_named_with_the_remedy(
    flags: dict[str, object], environ: dict[str, str], words: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(flags, environ)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_variable_that_nothing_reads_is_told_with_the_knob_like_it_and_without_its_value() -> None:
    """Those of Kubernetes' services, of other commands and of other programs are left alone."""
    wrong = {"LIVERY_MAX_RUNING": "3", "LIVERY_ADMN_PORT": "9000", "LIVERY_API_KYE": "secret", "LIVERY_FLAVOUR": "x"}
    services = {
        **{"LIVERY_SERVICE_HOST": "10.96.0.7", "LIVERY_SERVICE_PORT": "8000", "LIVERY_SERVICE_PORT_HTTP": "8000"},
        **{"LIVERY_PICKER_SERVICE_HOST": "10.96.0.8", "LIVERY_PICKER_PORT": "tcp://10.96.0.8:9002"},
        **{"LIVERY_PORT_8000_TCP": "tcp://10.96.0.7:8000", "LIVERY_PORT_8000_TCP_PROTO": "tcp"},
        **{"LIVERY_PORT_8000_TCP_PORT": "8000", "LIVERY_PORT_8000_TCP_ADDR": "10.96.0.7"},
    }
    others = {"LIVERY_CACHE": "/c", "LIVERY_URL": "u", "LIVERY_MAX_RUNNING": "3", "LIVERY_KEYS": "", "OTHER": "x"}
    assert list(unread_variables({**wrong, **services, **others})) == [
        "LIVERY_ADMN_PORT is set and nothing reads it; did you mean LIVERY_ADMIN_PORT?",
        "LIVERY_API_KYE is set and nothing reads it; did you mean LIVERY_API_KEY?",
        "LIVERY_FLAVOUR is set and nothing reads it; `livery serve --help` lists the knobs",
        "LIVERY_MAX_RUNING is set and nothing reads it; did you mean LIVERY_MAX_RUNNING?",
    ]


def test_a_key_is_never_shown(tmp_path: Path) -> None:
    file = tmp_path / "livery.yaml"
    file.write_text("model: m\napi_key: 987654321\n")  # a number: YAML needs quotes here
    with pytest.raises(SettingsError, match=r"api_key in .* is \(hidden\)") as caught:
        load_settings({}, {}, file)
    assert "987654321" not in str(caught.value)
    settings = load_settings({"model": "m", "api_key": "sk-secret"}, {})
    assert "sk-secret" not in repr(settings)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("prot: 8000", ["prot", "no such knob"]),
        ("- a\n- b", ["list of knobs"]),
        ("a: [", ["not YAML"]),
        ("port: x", ["port in", "'x'"]),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, words: list[str]) -> None:
    file = tmp_path / "livery.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError) as caught:
        load_settings({"model": "m"}, {}, file)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert str(file) in str(caught.value) or "--config" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"gone\.yaml can't be read"):
        load_settings({"model": "m"}, {}, tmp_path / "gone.yaml")


def test_settings_never_change_and_every_knob_explains_itself() -> None:
    settings = load_settings({"model": "m"}, {})
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]
    assert all(field.description for field in Settings.model_fields.values())


def test_two_ports_do_not_share_a_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    first = load_settings({"model": "m", "port": "1"}, {}).data_folder
    second = load_settings({"model": "m", "port": "2"}, {}).data_folder
    assert first != second
    assert first.parent == second.parent == tmp_path / "livery"
    assert load_settings({"model": "m", "data": "/x"}, {}).data_folder == Path("/x")


def test_a_socket_beside_an_address_in_the_same_file_is_refused_and_one_over_a_variable_is_not(tmp_path: Path) -> None:
    """Images set LIVERY_HOST and LIVERY_PORT for everybody."""
    file = tmp_path / "livery.yaml"
    file.write_text("model: m\nuds: /s\nport: 1\n")
    with pytest.raises(SettingsError, match=r"uds in .* and port in .* leave one out"):
        load_settings({}, {}, file)
    file.write_text("model: m\nport: 1\n")
    image = {"LIVERY_HOST": "0.0.0.0", "LIVERY_PORT": "8000"}
    for flags, environ in (({"uds": "/s"}, image), ({}, image | {"LIVERY_UDS": "/s"})):
        assert load_settings(flags, environ, file).uds == Path("/s")


def test_two_sockets_do_not_share_a_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    paths = ("/run/a/livery.sock", "/run/b/livery.sock", "livery.sock")
    folders = [load_settings({"model": "m", "uds": path}, {}).data_folder for path in paths]
    assert len(set(folders)) == 3
    assert all(folder.parent == tmp_path / "livery" and "socket-livery-" in folder.name for folder in folders)
    assert load_settings({"model": "m", "uds": str(tmp_path / "livery.sock")}, {}).data_folder == folders[2]


def test_origins_are_compared_as_browsers_write_them() -> None:
    given = "https://App.Example, http://localhost:5173,http://[::1]:80, *"
    origins = load_settings({"model": "m", "cors_origins": given}, {}).cors_origins
    assert origins == ("https://app.example", "http://localhost:5173", "http://[::1]:80", "*")


def test_what_is_asked_of_the_engine_is_shown_as_flags_and_reaches_it() -> None:
    flags = {
        **{"model": "m", "port": "1", "device": "cpu", "dtype": "float32", "weights": "int8", "kernels": "torch"},
        **{
            "quantization": "bnb-nf4",
            "graphs": "off",
            "decoder": "transformers",
            "deterministic": True,
            "threads": "3",
            "speculate": "4",
            "prefix_cache": False,
        },
        **{"max_model_len": "77", "max_batch_tokens": "78", "max_running": "79"},
        **{"kv_memory": "512MiB", "adapter_memory": "2GiB", "host_adapter_memory": "3GiB"},
    }
    settings = load_settings(flags, {})
    shown = asked_for(settings)
    for part in ("--deterministic", "--no-prefix-cache", "--speculate 4", "--kv-memory 512.0MiB", "--weights int8"):
        assert part in shown
    assert shown.count("--") == len(ENGINE_KNOBS)
    assert "--port" not in shown
    told, default = engine_config(settings, Path("m")), EngineConfig("m")
    fields = {field.removesuffix("_bytes"): field for field in EngineConfig.__struct_fields__}
    assert all(getattr(told, fields[knob]) != getattr(default, fields[knob]) for knob in ENGINE_KNOBS)
    assert set(fields) - set(ENGINE_KNOBS) == {
        *("model_path", "base_digest", "block_size", "log_level", "log_format", "overlap", "hang_s", "restarts")
    }
    assert asked_for(load_settings({"model": "m", "speculate": "0", "log_level": "debug"}, {})) == ""


def test_an_api_key_has_no_outer_spaces() -> None:
    settings = load_settings({"model": "m", "api_key": " sk-1\n"}, {})
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == "sk-1"
    with pytest.raises(SettingsError, match="--api-key"):
        load_settings({"model": "m", "api_key": "  \n"}, {})


@pytest.mark.parametrize("folder", [cache_dir, peers_folder, usual_data_folder])
def test_a_variable_that_is_set_to_nothing_is_not_set(
    folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the XDG base directory specification has it; nothing of ours may lie below whatever folder one is in."""
    for name in ("LIVERY_CACHE", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    unset = folder()
    for name in ("LIVERY_CACHE", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, "")
    assert folder() == unset
    assert unset.is_absolute()
