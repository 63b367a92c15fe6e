"""The hub over real HTTP: one commit, two files, nothing else, and what is said when it goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from adapters.hub_server import REPO, Answer, HubServer, body, endless, hang, redirect, status
from adapters.peft_made import make
from livery_adapters.fetching import (
    HubSource,
    Interrupt,
    Interrupted,
    NetworkLimits,
    Origin,
    SourceNotAllowed,
    SourcePolicy,
    fetch,
    parse_source,
)
from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.store import BlobStore
from livery_adapters.tensor_file import CONFIG_NAME, FILE_NAMES, WEIGHTS_NAME

QUICK = NetworkLimits(connect_s=5, stall_s=30, total_s=60, retries=2, backoff_s=0)
FILES = {CONFIG_NAME: b"{}", WEIGHTS_NAME: b"weights" * 9, "README.md": b"x", "optimizer.pt": b"x"}


@pytest.fixture
def elsewhere() -> Iterator[HubServer]:
    server = HubServer()
    yield server
    server.close()


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "data", Limits(max_weight_bytes=1 << 20))


def take(store: BlobStore, text: str = f"hf://{REPO}", limits: NetworkLimits = QUICK) -> tuple[str, Origin]:
    with store.incoming() as incoming:
        origin = fetch(parse_source(text), incoming, lambda done, total: None, limits)
        digest = incoming.seal()
        incoming.publish()
    return digest, origin


def refusal(store: BlobStore, text: str = f"hf://{REPO}", limits: NetworkLimits = QUICK) -> AdapterRefused:
    with pytest.raises(AdapterRefused) as caught:
        take(store, text, limits)
    assert store.digests() == []
    assert list((store.root / "incoming").iterdir()) == []
    assert text in caught.value.message
    assert "127.0.0.1" not in caught.value.message
    return caught.value


def test_an_adapter_comes_whole_and_nothing_else_is_asked_for(hub: HubServer, store: BlobStore, tmp_path: Path) -> None:
    made = tmp_path / "pirate"
    make(made)
    files = {name: (made / name).read_bytes() for name in FILE_NAMES}
    commit = hub.push({**files, "adapter_model.bin": b"pickle"})
    seen: list[tuple[int, int]] = []
    with store.incoming() as incoming:
        origin = fetch(parse_source(f"hf://{REPO}"), incoming, lambda done, total: seen.append((done, total)), QUICK)
        digest = incoming.seal()
    assert digest == store.put(made)
    assert origin == Origin(f"hf://{REPO}@{commit}", {"revision": commit})
    assert seen[-1] == (sum(map(len, files.values())),) * 2
    resolve = f"/{REPO}/resolve/{commit}"
    assert hub.paths() == [f"/api/models/{REPO}/revision/main", *(f"{resolve}/{name}" for name in FILE_NAMES)]


def test_revisions_and_folders(hub: HubServer, store: BlobStore) -> None:
    old = hub.push({f"a/b/{name}": data for name, data in FILES.items()}, "v1")
    hub.push(FILES, "refs/pr/1")
    digest, origin = take(store, f"hf://{REPO}@v1/a/b")
    assert origin.text == f"hf://{REPO}@{old}/a/b"
    assert take(store, f"hf://{REPO}@{old}/a/b") == (digest, origin)
    assert take(store, f"hf://{REPO}@refs/pr/1")[0] == digest
    assert refusal_code(store, f"hf://{REPO}@v1") == "missing_config"


def refusal_code(store: BlobStore, text: str) -> str:
    with pytest.raises(AdapterRefused) as caught:
        take(store, text)
    return caught.value.code


def test_both_files_are_of_the_commit_that_was_named_first(hub: HubServer, store: BlobStore) -> None:
    old = hub.push(FILES)

    def push_then_answer(handler: object) -> None:
        hub.push({**FILES, WEIGHTS_NAME: b"newer"})
        body(FILES[CONFIG_NAME])(handler)  # type: ignore[arg-type]

    hub.special[CONFIG_NAME] = [push_then_answer]
    digest, origin = take(store)
    assert origin.pinned == {"revision": old}
    assert (store.path(digest) / WEIGHTS_NAME).read_bytes() == FILES[WEIGHTS_NAME]


def test_large_files_come_from_elsewhere_without_the_token(
    hub: HubServer, elsewhere: HubServer, store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.push(FILES)
    hub.special[WEIGHTS_NAME] = [redirect(f"{elsewhere.url}/bucket/blob?X-Signature=signed")]
    elsewhere.special["/bucket/blob"] = [body(FILES[WEIGHTS_NAME])]
    hub.special[CONFIG_NAME] = [redirect("/cached/config")]
    hub.special["/cached/config"] = [body(FILES[CONFIG_NAME])]
    digest, origin = take(store)
    assert (store.path(digest) / WEIGHTS_NAME).read_bytes() == FILES[WEIGHTS_NAME]
    assert elsewhere.requests == [("/bucket/blob", None)]
    assert {token for _, token in hub.requests} == {"Bearer hf_secret"}
    assert "signed" not in origin.text


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/x",
        "https://0x7f.1/x",
        "https://2130706433/x",
        "https://internal/x",
        "http://localhost:{port}/x",
        "http://cdn.example.org/x",
        "https://user:password@cdn.example.org/x",
        "file:///etc/passwd",
        "ftp://cdn.example.org/x",
    ],
)
def test_redirects_lead_nowhere_inside(location: str, hub: HubServer, elsewhere: HubServer, store: BlobStore) -> None:
    hub.push(FILES)
    hub.special[WEIGHTS_NAME] = [redirect(location.format(port=elsewhere.url.rpartition(":")[2]))]
    refused = refusal(store)
    assert refused.code == "source_unreachable"
    assert "redirects to an address that is not followed" in refused.message
    assert elsewhere.requests == []


def test_redirects_in_a_circle_end(hub: HubServer, store: BlobStore) -> None:
    hub.push(FILES)
    hub.special[WEIGHTS_NAME] = [redirect(f"/{WEIGHTS_NAME}")] * 50
    assert "redirects more than 5 times" in refusal(store).message


@pytest.mark.parametrize(
    ("at", "code", "refused", "tries"),
    [
        ("main", 401, "source_forbidden", 1),
        ("main", 403, "source_forbidden", 1),
        ("main", 404, "source_not_found", 1),
        ("main", 500, "source_unreachable", 3),
        ("main", 429, "source_unreachable", 3),
        ("main", 418, "source_unreachable", 1),
        (WEIGHTS_NAME, 403, "source_forbidden", 1),
        (WEIGHTS_NAME, 404, "source_not_found", 1),
        (WEIGHTS_NAME, 503, "source_unreachable", 3),
    ],
)
def test_each_answer_has_its_refusal(
    at: str, code: int, refused: str, tries: int, hub: HubServer, store: BlobStore
) -> None:
    hub.push(FILES)
    hub.special[at] = [status(code)] * 10
    assert refusal(store).code == refused
    assert len([path for path in hub.paths() if path.endswith(at)]) == tries


def test_what_passes_is_tried_again(hub: HubServer, store: BlobStore) -> None:
    hub.push(FILES)
    hub.special["main"] = [status(503), status(500)]
    hub.special[WEIGHTS_NAME] = [status(429)]
    assert take(store)[0] in store.digests()


def test_a_repository_without_the_files_says_which(hub: HubServer, store: BlobStore) -> None:
    for files, code in (
        ([WEIGHTS_NAME], "missing_config"),
        ([CONFIG_NAME], "missing_weights"),
        ([CONFIG_NAME, "adapter_model.bin"], "pickle_only"),
        ([], "missing_config"),
    ):
        hub.push(dict.fromkeys(files, b"x"))
        assert refusal(store).code == code
    assert all("/resolve/" not in path for path in hub.paths())


@pytest.mark.parametrize("tells_sizes", [True, False])
def test_what_is_too_large_is_not_downloaded(tells_sizes: bool, hub: HubServer, store: BlobStore) -> None:
    hub.tells_sizes = tells_sizes
    hub.push({**FILES, WEIGHTS_NAME: bytes((1 << 20) + 1)})
    with pytest.raises(AdapterRefused) as caught:
        take(store)
    assert caught.value.code == "too_large"
    assert any("/resolve/" in path for path in hub.paths()) is not tells_sizes
    assert store.digests() == []


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        (body(b"weig", claims=len(FILES[WEIGHTS_NAME])), "source_unreachable", "the connection broke off"),
        (body(b"weig"), "incomplete", "63 were announced"),
        (body(b"w" * 64), "incomplete", "has 64 bytes and 63 were announced"),
        (endless, "too_large", "over the limit"),
    ],
)
def test_a_body_that_lies_about_its_length(
    answer: Answer, code: str, says: str, hub: HubServer, store: BlobStore
) -> None:
    hub.push(FILES)
    hub.special[WEIGHTS_NAME] = [answer]
    with pytest.raises(AdapterRefused) as caught:
        take(store)
    assert caught.value.code == code
    assert says in caught.value.message
    assert store.digests() == []


@pytest.mark.parametrize(("at", "says"), [("main", "broke off"), (WEIGHTS_NAME, "broke off (ReadTimeout)")])
def test_a_stalled_answer_is_given_up(at: str, says: str, hub: HubServer, store: BlobStore) -> None:
    hub.push(FILES)
    hub.special[at] = [hang(hub, b"{")]
    refused = refusal(store, limits=replace(QUICK, stall_s=0.3))
    assert refused.code == "source_unreachable"
    assert says in refused.message


def test_the_whole_has_a_time_limit(hub: HubServer, store: BlobStore) -> None:
    hub.push(FILES)
    refused = refusal(store, limits=replace(QUICK, total_s=0))
    assert refused.code == "source_unreachable"
    assert "over 0 s" in refused.message


@pytest.mark.parametrize(
    "info",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"sha": "main", "siblings": []}',
        b'{"sha": "../../../../../../../../../../../../../x", "siblings": []}',
        b'{"sha": 7, "siblings": []}',
        b'{"sha": "' + b"a" * 40 + b'", "siblings": [7]}',
        b'{"sha": "' + b"a" * 40 + b'", "siblings": 7}',
        b"[" * 100_000,
        b" " * (9 << 20),
    ],
)
def test_a_description_that_makes_no_sense(info: bytes, hub: HubServer, store: BlobStore) -> None:
    hub.special["main"] = [body(info)]
    assert refusal(store).code == "source_unreachable"


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "ftp://127.0.0.1", "no address", "http://"])
def test_no_hub_at_all(endpoint: str, hub: HubServer, store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert refusal(store).code == "source_unreachable"


def test_offline_is_respected(hub: HubServer, store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.push(FILES)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in refusal(store).message
    assert hub.requests == []


def test_the_policy_sees_the_source_before_the_hub_does(hub: HubServer) -> None:
    with pytest.raises(SourceNotAllowed):
        SourcePolicy(["hf://other"]).check(HubSource(REPO))
    assert hub.requests == []


def test_an_interrupted_fetch_writes_nothing_more(hub: HubServer, store: BlobStore) -> None:
    hub.push({**FILES, WEIGHTS_NAME: b"w" * (1 << 19)})
    interrupt = Interrupt()
    with store.incoming() as incoming:
        with pytest.raises(Interrupted):
            fetch(parse_source(f"hf://{REPO}"), incoming, lambda done, total: interrupt.set(), QUICK, interrupt)
        assert [file.name for file in incoming.path.iterdir()] == [CONFIG_NAME]


DRIPS = 500


def dripping(hub: HubServer, sent: list[int], then: Callable[[], object] = lambda: None) -> Answer:
    """A body that comes a byte at a time, in 10 s in all; `then` is called after the third."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", str(DRIPS))
        handler.end_headers()
        with suppress(OSError):  # whoever asked went away
            while len(sent) < DRIPS and not hub.released.wait(0.02):
                handler.wfile.write(b"x")
                sent.append(1)
                if len(sent) == 3:
                    then()
        handler.close_connection = True

    return answer


@pytest.mark.parametrize("at", ["main", WEIGHTS_NAME])
def test_a_hub_that_drips_is_given_up_when_the_time_is_over(at: str, hub: HubServer, store: BlobStore) -> None:
    hub.push({**FILES, WEIGHTS_NAME: b"x" * DRIPS})
    sent: list[int] = []
    hub.special[at] = [dripping(hub, sent)]
    refused = refusal(store, limits=replace(QUICK, total_s=1))
    assert 3 < len(sent) < DRIPS
    assert "over 1 s" in refused.message


def test_an_interrupt_ends_a_fetch_of_a_hub_that_drips(hub: HubServer, store: BlobStore) -> None:
    hub.push({**FILES, WEIGHTS_NAME: b"x" * DRIPS})
    sent: list[int] = []
    interrupt = Interrupt()
    hub.special[WEIGHTS_NAME] = [dripping(hub, sent, interrupt.set)]
    with store.incoming() as incoming, pytest.raises(Interrupted):
        fetch(parse_source(f"hf://{REPO}"), incoming, lambda done, total: None, QUICK, interrupt)
    assert len(sent) < DRIPS


def test_an_interrupt_ends_the_wait_for_another_try(hub: HubServer, store: BlobStore) -> None:
    hub.push(FILES)
    interrupt = Interrupt()

    def fail(handler: BaseHTTPRequestHandler) -> None:
        interrupt.set()
        status(503)(handler)

    hub.special["/revision/main"] = [fail]
    patient = replace(QUICK, backoff_s=600)
    with store.incoming() as incoming, pytest.raises(Interrupted):
        fetch(parse_source(f"hf://{REPO}"), incoming, lambda done, total: None, patient, interrupt)
    assert len(hub.requests) == 1
