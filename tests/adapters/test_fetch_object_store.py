"""Object stores over real HTTP: moto's S3 server, and a small one of our own for what moto never does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from adapters.object_stores import environment, moto, s3
from adapters.peft_made import make
from livery_adapters.beside import BESIDE_NAMES
from livery_adapters.fetching import NetworkLimits, Origin, fetch, object_store, parse_source
from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.store import BlobStore
from livery_adapters.tensor_file import CONFIG_NAME, FILE_NAMES, WEIGHTS_NAME

__all__ = ["environment", "moto", "s3"]  # fixtures
QUICK = NetworkLimits(connect_s=5, stall_s=20, total_s=60, retries=1, backoff_s=0.01)
FILES = {CONFIG_NAME: b"{}", WEIGHTS_NAME: b"weights" * 9}
SOURCE = "s3://bucket/team/pirate"


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "data", Limits(max_weight_bytes=1 << 20))


def upload(s3: Any, files: dict[str, bytes], prefix: str = "team/pirate/") -> dict[str, str]:
    """Put the objects; their ETags by name."""
    return {name: s3.put_object(Bucket="bucket", Key=prefix + name, Body=data)["ETag"] for name, data in files.items()}


def take(
    store: BlobStore, text: str = SOURCE, progress: Callable[[int, int], object] = max, limits: NetworkLimits = QUICK
) -> tuple[str, Origin]:
    with store.incoming() as incoming:
        origin = fetch(parse_source(text), incoming, lambda done, total: (progress(done, total), None)[1], limits)
        digest = incoming.seal()
        incoming.publish()
    return digest, origin


def refusal(store: BlobStore, text: str = SOURCE, **how: Any) -> AdapterRefused:
    with pytest.raises(AdapterRefused) as caught:
        take(store, text, **how)
    assert store.digests() == []
    assert list((store.root / "incoming").iterdir()) == []
    for secret in ("hidden", "AKIDEXAMPLE", "127.0.0.1", "Signature"):
        assert secret not in caught.value.message
    return caught.value


def test_an_adapter_comes_whole_in_parts(
    s3: Any, store: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_PART", 1000)
    made = tmp_path / "pirate"
    make(made)
    files = {name: (made / name).read_bytes() for name in FILE_NAMES}
    tags = upload(s3, {**files, "optimizer.pt": b"x"})
    seen: list[tuple[int, int]] = []
    digest, origin = take(store, progress=lambda done, total: seen.append((done, total)))
    assert digest == store.put(made)
    assert origin.pinned == {name: tags[name] for name in FILE_NAMES}
    assert all(tag in origin.text for tag in origin.pinned.values())
    assert origin.text.startswith(SOURCE)
    assert seen[-1] == (sum(map(len, files.values())),) * 2
    assert len(seen) > 2


def test_a_bucket_with_versions_pins_them(s3: Any, store: BlobStore) -> None:
    s3.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
    upload(s3, {**FILES, WEIGHTS_NAME: b"older"})
    upload(s3, FILES)
    digest, origin = take(store)
    assert (store.path(digest) / WEIGHTS_NAME).read_bytes() == FILES[WEIGHTS_NAME]
    latest = {entry["VersionId"] for entry in s3.list_object_versions(Bucket="bucket")["Versions"] if entry["IsLatest"]}
    assert set(origin.pinned.values()) == latest


def test_the_root_of_a_bucket_and_odd_names(s3: Any, store: BlobStore) -> None:
    upload(s3, FILES, "")
    upload(s3, FILES, "team/my pirate+é/")
    upload(s3, {CONFIG_NAME: b"other"}, "team/")
    assert take(store, "s3://bucket")[0] == take(store, "s3://bucket/team/my pirate+é/")[0]


def test_what_is_missing_is_named(s3: Any, store: BlobStore) -> None:
    assert refusal(store).code == "source_not_found"
    assert refusal(store, "s3://other-bucket/x").code == "source_not_found"
    upload(s3, {CONFIG_NAME: b"{}"})
    assert refusal(store).code == "missing_weights"
    upload(s3, {WEIGHTS_NAME: b"x"}, "other/")
    assert refusal(store, "s3://bucket/other").code == "missing_config"
    upload(s3, FILES, "team/pirates/")  # a prefix is no beginning of a name
    assert refusal(store).code == "missing_weights"


def test_what_is_too_large_is_not_downloaded(s3: Any, store: BlobStore) -> None:
    upload(s3, {**FILES, WEIGHTS_NAME: bytes((1 << 20) + 1)})
    seen: list[int] = []
    assert refusal(store, progress=lambda done, total: seen.append(done)).code == "too_large"
    assert seen == []


@pytest.mark.parametrize("name", FILE_NAMES)
@pytest.mark.parametrize("after", [1, 2, 4])  # parts: after the first file; within the second; when all are there
def test_a_change_meanwhile_is_noticed(
    name: str, after: int, s3: Any, store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_PART", 21)
    upload(s3, FILES)
    seen: list[int] = []

    def change(done: int, total: int) -> None:
        seen.append(done)
        if len(seen) == after:
            upload(s3, {name: b"newer" * 9})

    refused = refusal(store, progress=change)
    assert refused.code == "incomplete"
    assert "changed while they were fetched" in refused.message


def test_an_object_that_goes_away_meanwhile_is_noticed(s3: Any, store: BlobStore) -> None:
    upload(s3, FILES)
    gone = f"team/pirate/{WEIGHTS_NAME}"
    refused = refusal(store, progress=lambda done, total: s3.delete_object(Bucket="bucket", Key=gone))
    assert refused.code in ("incomplete", "missing_weights")


def test_the_whole_has_a_time_limit(s3: Any, store: BlobStore) -> None:
    upload(s3, FILES)
    assert "over 0 s" in refusal(store, limits=replace(QUICK, total_s=0)).message


# -- what moto never does ----------------------------------------------------------------------------------


class OddServer:
    """An S3 that says of both files what `head` says and answers a GET as `get` does."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.requests: list[tuple[str, str, str | None]] = []
        self.head_status = 200
        self.get: Callable[[BaseHTTPRequestHandler], None] = lambda handler: reply(handler, 200, b"x" * 9)
        odd = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                odd.requests.append(("HEAD", self.path, self.headers["authorization"]))
                reply(self, odd.head_status, length=9, e_tag='"one"')

            def do_GET(self) -> None:
                odd.requests.append(("GET", self.path, self.headers["authorization"]))
                odd.get(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def reply(
    handler: BaseHTTPRequestHandler,
    status: int,
    data: bytes = b"",
    *,
    length: int | None = None,
    e_tag: str = '"one"',
    more: dict[str, str] | None = None,
) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data) if length is None else length))
    handler.send_header("ETag", e_tag)
    handler.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
    for name, value in (more or {}).items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


@pytest.fixture
def odd(environment: pytest.MonkeyPatch) -> Iterator[OddServer]:
    server = OddServer()
    environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    yield server
    server.close()


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "source_forbidden"), (403, "source_forbidden"), (404, "source_not_found"), (500, "source_unreachable")],
)
def test_each_answer_has_its_refusal(status: int, code: str, odd: OddServer, store: BlobStore) -> None:
    odd.head_status = status
    assert refusal(store).code == code
    assert len(odd.requests) <= 2 + QUICK.retries


def test_a_store_that_forbids_reading_only(odd: OddServer, store: BlobStore) -> None:
    odd.get = lambda handler: reply(handler, 403, b"<Error><Code>AccessDenied</Code><Key>hidden</Key></Error>")
    assert refusal(store).code == "source_forbidden"


def test_a_body_of_another_length_is_refused(odd: OddServer, store: BlobStore) -> None:
    def short(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, 206, b"x" * 4, more={"Content-Range": "bytes 0-3/9"})

    def cut(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, 206, b"x" * 4, length=9, more={"Content-Range": "bytes 0-8/9"})
        handler.close_connection = True

    for get in (short, cut):
        odd.get = get
        assert refusal(store).code in ("incomplete", "source_unreachable")


def test_another_object_than_the_one_looked_at_is_refused(odd: OddServer, store: BlobStore) -> None:
    """The object is "one" whenever it is looked at and "two" whenever it is read."""

    def get(handler: BaseHTTPRequestHandler) -> None:
        if handler.headers["if-match"] == '"one"':
            reply(handler, 412)
        else:
            reply(handler, 206, b"x" * 9, more={"Content-Range": "bytes 0-8/9"})

    odd.get = get
    assert refusal(store).code == "incomplete"


def test_a_stalled_body_is_given_up(odd: OddServer, store: BlobStore) -> None:
    def stall(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, 206, b"xx", length=9, more={"Content-Range": "bytes 0-8/9"})
        handler.wfile.flush()
        odd.released.wait(60)
        handler.close_connection = True

    odd.get = stall
    assert refusal(store, limits=replace(QUICK, stall_s=0.5, retries=0)).code == "source_unreachable"


def test_a_redirect_to_another_host_carries_no_credentials(odd: OddServer, store: BlobStore) -> None:
    """obstore's HTTP client follows a store's redirect and leaves the signature out; this notices a change of that."""
    other = OddServer()
    part = {"Content-Range": "bytes 0-8/9"}
    try:
        odd.get = lambda handler: reply(handler, 307, more={"Location": f"http://localhost:{other.port}/x"})
        other.get = lambda handler: reply(handler, 206, b"y" * 9, more=part)
        digest, _ = take(store)
        assert (store.path(digest) / WEIGHTS_NAME).read_bytes() == b"y" * 9
        assert other.requests == [("GET", "/x", None)] * len((*FILE_NAMES, *BESIDE_NAMES))
        assert all(authorization for _, _, authorization in odd.requests)
    finally:
        other.close()


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "no address"])
def test_no_store_at_all(endpoint: str, store: BlobStore, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("AWS_ENDPOINT_URL", endpoint)
    assert refusal(store).code == "source_unreachable"


def test_an_account_that_is_not_configured(store: BlobStore, environment: pytest.MonkeyPatch) -> None:
    environment.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    refused = refusal(store, "az://container/x")
    assert refused.code == "source_unreachable"
    assert "not configured" in refused.message
