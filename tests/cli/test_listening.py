"""Where a server listens and who may call it: Unix sockets, TLS, a prefix behind a proxy, pages of other origins."""

from __future__ import annotations

import socket
import ssl
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import openai
import pytest

from adapters.hub_server import HubServer
from api.peft_files import make_adapter
from certificates import certificate
from cli.conftest import Livery
from cli.processes import ENVIRON, run, serving, url_in
from deploy.manifests import image
from livery.listening import listen
from livery.ready import Address
from livery.running.address_file import told_in
from livery.settings import Settings, SettingsError

MODEL = "smollm2-135m-instruct"


def settings(**given: object) -> Settings:
    return Settings.model_validate({"model": MODEL, "port": 0, **given})


def health(file: Path) -> tuple[int, str]:
    """What the image's HEALTHCHECK says of a server that wrote there where it listens, past a proxy nobody is at."""
    nobody = {name: "http://127.0.0.1:1" for name in ("http_proxy", "https_proxy", "all_proxy")}
    command = [sys.executable if word == "python" else word for word in image().healthcheck]
    environ = {**ENVIRON, **nobody, "LIVERY_ADDRESS_FILE": str(file)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_the_listener_is_one_of_tcp() -> None:
    """The loop turns off Nagle's algorithm only for sockets that say so; else answers wait for acknowledgements."""
    with listen(settings()).socket as bound:
        assert bound.proto == socket.IPPROTO_TCP


def test_a_unix_socket_behind_a_proxy_that_strips_its_prefix_or_not(tmp_path: Path, livery: Livery) -> None:
    """The socket is only its owner's; both paths lead to the same routes, and past the same doors."""
    uds = tmp_path / "livery.sock"
    make_adapter(tmp_path / "adapters" / "pirate", seed=1)
    address = tmp_path / "address"
    given = ("--uds", str(uds), "--root-path", "/llm", "--api-key", "secret", "--address-file", str(address))
    with serving(tmp_path / "adapters", tmp_path / "data", *given) as (_, printed):
        assert health(address) == (0, "")
        assert livery("ready", "--url", f"unix:{uds}").out == "ready\n"
        assert f"--unix-socket {uds}" in printed
        assert stat.S_IMODE(uds.stat().st_mode) == 0o600
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(uds)), base_url="http://localhost") as client:
            for prefix in ("", "/llm"):
                assert client.get(f"{prefix}/health").status_code == 200
                assert client.get(f"{prefix}/v1/models").status_code == 401
                key = {"authorization": "Bearer secret"}
                names = [model["id"] for model in client.get(f"{prefix}/v1/models", headers=key).json()["data"]]
                assert names == [MODEL, "pirate"]
                refused = client.delete(f"{prefix}/v1/adapters/pirate", headers=key)
                assert (refused.status_code, refused.json()["error"]["code"]) == (403, "loopback_only")
            assert client.get("/llm/llm/v1/models", headers=key).status_code == 404
        assert run("version").returncode == 0
        with pytest.raises(SettingsError, match="in use by another server"):
            listen(settings(uds=uds))


def test_a_second_server_on_a_port_fails_before_the_first_one_serves() -> None:
    with listen(settings()).socket as first:
        port = first.getsockname()[1]
        with pytest.raises(SettingsError, match="choose another port"):
            listen(settings(port=port))


def test_a_second_server_on_a_unix_socket_fails_before_the_first_one_serves(tmp_path: Path) -> None:
    uds = tmp_path / "livery.sock"
    with closing(listen(settings(uds=uds))) as first, socket.socket(socket.AF_UNIX) as client:
        for _ in range(2):
            with pytest.raises(SettingsError, match="in use by another server"):
                listen(settings(uds=uds))
        client.connect(str(uds))
        assert first.uds == uds
    assert not uds.exists()


def test_a_unix_socket_whose_queue_is_full_is_in_use(tmp_path: Path) -> None:
    uds = tmp_path / "livery.sock"
    with closing(listen(settings(uds=uds))) as first, closing(socket.socket(socket.AF_UNIX)) as client:
        first.socket.listen(0)
        client.connect(str(uds))
        with pytest.raises(SettingsError, match="in use by another server"):
            listen(settings(uds=uds))


def test_only_ones_own_unix_socket_is_removed(tmp_path: Path) -> None:
    uds = tmp_path / "livery.sock"
    first = listen(settings(uds=uds))
    uds.unlink()  # somebody was sure that nobody serves there
    with closing(listen(settings(uds=uds))) as second:
        first.close()
        assert uds.is_socket()
        uds.chmod(0o660)  # for a proxy
    assert second.uds == uds
    assert not uds.exists()


def test_a_socket_left_behind_is_taken_over_and_other_files_are_not(tmp_path: Path) -> None:
    uds = tmp_path / "livery.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(uds))
    taken = listen(settings(uds=uds))
    taken.close()
    assert not uds.exists()
    uds.write_text("somebody's")
    with pytest.raises(SettingsError, match="is no socket"):
        listen(settings(uds=uds))
    assert uds.read_text() == "somebody's"
    with pytest.raises(SettingsError, match="its folder must exist"):
        listen(settings(uds=tmp_path / "nowhere" / "livery.sock"))


def test_tls_with_the_official_client(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    (tmp_path / "adapters").mkdir()
    given = ("--ssl-certfile", str(cert), "--ssl-keyfile", str(key))
    address = tmp_path / "address"
    with serving(tmp_path / "adapters", tmp_path / "data", *given, LIVERY_ADDRESS_FILE=str(address)) as (_, printed):
        assert health(address) == (0, "")
        assert "https://127.0.0.1:" in printed
        url = url_in(printed.replace("https", "http")).replace("http://127.0.0.1", "https://localhost")
        http = openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile=str(cert)))
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", http_client=http, max_retries=0) as client:
            assert [model.id for model in client.models.list()] == [MODEL]
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https", "http"))


def test_tls_files_that_do_not_fit_are_named_before_the_model_is_loaded(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    with pytest.raises(SettingsError, match="--ssl-keyfile; give the other"):
        listen(settings(ssl_certfile=cert))
    with pytest.raises(SettingsError, match="PEM"):
        listen(settings(ssl_certfile=key, ssl_keyfile=key))
    with pytest.raises(SettingsError, match="No such file"):
        listen(settings(ssl_certfile=cert, ssl_keyfile=tmp_path / "none.pem"))


def test_web_pages_of_listed_origins_may_call(tmp_path: Path) -> None:
    """A browser asks first, without a key; a page from elsewhere gets no permission, and its answer can't be read."""
    (tmp_path / "adapters").mkdir()
    given = ("--cors-origins", "https://app.example", "--api-key", "secret")
    address = tmp_path / "address"
    with serving(tmp_path / "adapters", tmp_path / "data", *given, LIVERY_ADDRESS_FILE=str(address)) as (_, printed):
        assert health(address) == (0, "")
        url = f"{url_in(printed)}/v1/models"
        asked = {"access-control-request-method": "GET", "access-control-request-headers": "authorization"}
        allowed = httpx.options(url, headers={"origin": "https://app.example", **asked})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        assert httpx.options(url, headers={"origin": "https://evil.example", **asked}).status_code == 400
        page = {"origin": "https://app.example", "authorization": "Bearer secret"}
        answer = httpx.get(url, headers=page)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "x-livery-adapter" in answer.headers["access-control-expose-headers"]
        stranger = httpx.get(url, headers={**page, "origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers


def test_a_server_that_is_not_ready_is_told_from_one_that_is_not_there(tmp_path: Path, livery: Livery) -> None:
    address = tmp_path / "address"
    assert health(address) == (1, f"no server runs that was told to write where it listens to {address}\n")
    address.write_text("127.0.0.1:8000")
    assert health(address)[1].startswith(f"{address} isn't what a server writes there")
    with closing(listen(settings(uds=tmp_path / "s"))) as listener, told_in(address, listener):
        listener.socket.close()
        status, told = health(address)
        assert (status, told.partition(" (")[0]) == (1, f"no answer from unix:{tmp_path / 's'}")
        asked = livery("ready", "--address-file", address)
        assert (asked.code, asked.err.partition(" (")[0]) == (1, f"error: no answer from unix:{tmp_path / 's'}")
    assert not address.exists()


def test_an_answer_that_is_no_yes_is_told(hub: HubServer, livery: Livery) -> None:
    asked = livery("ready", "--url", hub.url)
    assert (asked.code, asked.err) == (1, f"error: {hub.url} answers /ready with 404: \n")


def test_an_address_that_another_server_wrote_since_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    address = tmp_path / "address"
    with closing(listen(settings())) as first, closing(listen(settings())) as second:
        with told_in(address, second):
            with told_in(address, first), told_in(tmp_path / "none" / "address", first):
                Address(second.url).write(address)
            assert Address.read(address) == Address(second.url)
        assert not address.exists()
    assert "can't be written" in caplog.text and str(tmp_path / "none" / "address") in caplog.text


@pytest.mark.parametrize("path", ["llm", "/v1", "/v1/llm"])
def test_a_prefix_that_hides_the_api_is_refused(path: str, tmp_path: Path, livery: Livery) -> None:
    refused = livery("serve", "--model", MODEL, "--root-path", path, "--data", tmp_path)
    assert refused.code != 0
    assert "--root-path" in refused.err
