"""The corpus against a real server: every case gets its 4xx, and a client who streams meanwhile notices nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

import pytest

from hostile.case import Case
from hostile.corpus import CASES
from hostile.name_cases import BAD_NAMES
from hostile.served import Served, serving, stream, upload
from hostile.taking import GOOD, Outcome
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME

# What asks for too much work is tried in a process of its own (test_corpus.py).
TAKEN = [case for case in CASES if case.group != "work"]


@dataclass(frozen=True)
class Afternoon:
    """What became of all cases, and of the good adapter's clients meanwhile."""

    served: Served
    outcomes: dict[str, Outcome]
    answers: list[str]
    descriptors: tuple[int, int]  # before and after


NO_DIRECTORY = {"file: the directory is a file", "file: the directory is not there"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served")) as running:
        yield running


@pytest.fixture(scope="module")
def afternoon(served: Served) -> Afternoon:
    before = served.descriptors()
    with served.neighbour.streaming() as answers:
        outcomes = {case.title: served.take(case) for case in TAKEN}
    return Afternoon(served, outcomes, answers, (before, served.descriptors()))


@pytest.mark.parametrize("case", TAKEN, ids=lambda case: ascii(case.title))
def test_each_gets_its_own_answer_and_leaves_nothing(case: Case, afternoon: Afternoon) -> None:
    outcome = afternoon.outcomes[case.title]
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    # A server looks whether the directory it was told of is there before it copies anything.
    code, says = ("source_not_found", "there is no directory") if case.title in NO_DIRECTORY else (case.code, case.says)
    assert outcome.code == code, outcome.message
    assert says in outcome.message
    assert outcome.left_behind == ()


def test_the_neighbours_stream_never_changes(afternoon: Afternoon) -> None:
    assert len(afternoon.answers) > 1
    assert set(afternoon.answers) == {afternoon.served.neighbour.reference}
    assert stream(afternoon.served.client, GOOD) == afternoon.served.neighbour.reference


def test_the_good_adapter_does_something(served: Served) -> None:
    """Otherwise the test before would pass whatever weights were used."""
    base = served.client.get("/v1/models").json()["data"][0]["id"]
    assert stream(served.client, base) != served.neighbour.reference


def test_no_descriptor_is_kept(afternoon: Afternoon) -> None:
    before, after = afternoon.descriptors
    assert after <= before + 4  # a connection or two of a database may stay open


# -- requests that are bad before any adapter is seen ----------------------------------------------------

_CONFIG = f'Content-Disposition: form-data; name="{CONFIG_NAME}"'
UPLOADS = {
    "no parts": (upload(), "missing_config"),
    "one file": (upload((_CONFIG, b"{}")), "missing_weights"),
    "a file twice": (upload((_CONFIG, b"{}"), (_CONFIG, b"{}")), "duplicate_file"),
    "a name that climbs": (upload(('Content-Disposition: form-data; name="../x"', b"{}")), "unexpected_file"),
    "an absolute name": (upload(('Content-Disposition: form-data; name="/etc/passwd"', b"{}")), "unexpected_file"),
    "a name of no UTF-8": (upload(('Content-Disposition: form-data; name="\ud800"', b"{}")), "unexpected_file"),
    "a good file name and a bad name": (
        upload((f'Content-Disposition: form-data; name="x"; filename="{WEIGHTS_NAME}"', b"")),
        "unexpected_file",
    ),
    "a bad file name and a good name": (upload((_CONFIG + '; filename="../../x"', b"{}")), "missing_weights"),
    "no name": (upload(("Content-Disposition: form-data", b"{}")), "invalid_value"),
    "no disposition": (upload(("X-Header: 1", b"{}")), "invalid_value"),
    "a cut body": (upload((_CONFIG, b"{}"), end=False), "invalid_value"),
    "another boundary": (upload((_CONFIG, b"{}")) | {"content": b"--other\r\n\r\n"}, "invalid_value"),
    "a header of two megabytes": (upload((f"X-Header: {'a' * (2 << 20)}", b"{}")), "invalid_value"),
    "50,000 headers": (upload(("\r\n".join(f"X-{n}: 1" for n in range(50_000)), b"{}")), "invalid_value"),
    "compressed": (
        {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=x", "content-encoding": "gzip"}},
        "invalid_value",
    ),
    "a configuration of 2 MB": (upload((_CONFIG, b" " * (2 << 20))), "too_large"),
}


@pytest.mark.parametrize("case", UPLOADS)
@pytest.mark.parametrize("path", ["/v1/adapters:check", "/v1/adapters/bad/versions"])
def test_a_bad_upload_is_refused(path: str, case: str, served: Served) -> None:
    arguments, code = UPLOADS[case]
    answer = served.client.post(path, **arguments)
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]["code"] == code, answer.text
    assert served.left_behind() == []


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, id=ascii(name)) for name, _ in BAD_NAMES if name.isascii()],
)
def test_a_bad_name_is_refused(name: str, served: Served) -> None:
    answer = served.client.put(f"/v1/adapters/{quote(name, safe='')}", json={"source": str(served.root / "adapters")})
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]["code"] in ("invalid_name", "unknown_url", "method_not_allowed"), answer.text
    assert served.left_behind() == []


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("/etc", "source_not_allowed"),
        ("/proc/self", "source_not_allowed"),
        ("../../etc", "bad_source"),
        ("http://169.254.169.254/latest", "bad_source"),
        ("hf://org/name", "source_not_allowed"),
        ("s3://bucket/x", "source_not_allowed"),
        ("file:///etc", "source_not_allowed"),
    ],
)
def test_a_source_that_nobody_allowed_is_refused(source: str, code: str, served: Served) -> None:
    for answer in (
        served.client.post("/v1/adapters:check", json={"source": source}),
        served.client.put("/v1/adapters/bad", json={"source": source}),
    ):
        assert 400 <= answer.status_code < 500, answer.text
        assert answer.json()["error"]["code"] == code, answer.text
    assert served.left_behind() == []


def test_alias_targets_and_versions_that_are_no_text_are_refused(served: Served) -> None:
    alias = b'{"targets": [{"adapter": "\\ud800"}]}'
    version = b'{"version": "\\ud800"}'
    json = {"content-type": "application/json"}
    for answer in (
        served.client.put("/v1/aliases/canary", content=alias, headers=json),
        served.client.post(f"/v1/adapters/{GOOD}/activate", content=version, headers=json),
    ):
        assert 400 <= answer.status_code < 500, answer.text
