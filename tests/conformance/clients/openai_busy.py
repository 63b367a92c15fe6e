"""The official client and a server that takes one request at a time, and whose adapters it may delete."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from served import ADAPTERS, BASE, V1


def client(retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=V1, api_key="none", timeout=120, max_retries=retries)


@pytest.fixture
def occupied() -> Iterator[openai.Stream[openai.types.Completion]]:
    """A stream that keeps the server's only place until it is closed."""
    long = {"ignore_eos": True}
    patient = client(retries=5)  # the place may still be that of the test before, whose stream has just been closed
    stream = patient.completions.create(model=BASE, prompt="one", max_tokens=240, stream=True, extra_body=long)
    next(iter(stream))
    yield stream
    stream.close()


def test_a_full_server_says_when_to_come_back(occupied: openai.Stream[openai.types.Completion]) -> None:
    with pytest.raises(openai.InternalServerError) as raised:
        client().completions.create(model=BASE, prompt="two", max_tokens=1)
    assert raised.value.status_code == 503
    assert raised.value.code == "engine_overloaded"
    assert float(raised.value.response.headers["retry-after"]) > 0


def test_the_client_comes_back_by_itself(occupied: openai.Stream[openai.types.Completion]) -> None:
    patient = client(retries=5)
    seen: list[int] = []
    patient._client.event_hooks["response"] = [lambda response: (seen.append(response.status_code), occupied.close())]
    assert patient.completions.create(model=BASE, prompt="two", max_tokens=1).choices
    assert seen[0] == 503 and seen[-1] == 200


def test_a_model_is_deleted() -> None:
    gone = ADAPTERS[0]
    assert client().models.delete(gone).deleted
    with pytest.raises(openai.NotFoundError):
        client().models.retrieve(gone)
    assert gone not in [card.id for card in client().models.list()]
