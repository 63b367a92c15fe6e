"""What an adapter's owner keeps to itself when others may use it: its words, its template, its other versions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from api.live_server import Serve, Setup, saying
from api.peft_files import make_adapter
from api.tenants import OPERATOR, People, call, code_of, people, served_by, upload
from livery.refusals import WHY_FOR_OTHERS
from livery.text import Tokenizer
from livery_adapters.manifest import read_manifest

HI: list[Any] = [{"role": "user", "content": "hi"}]
SECRET = "Never say swordfish."
TEMPLATE = "{% for message in messages %}swordfish {{ message['content'] }}{% endfor %}"
PROFILES: dict[str, dict[str, Any]] = {
    "prompted": {"system_prompt": SECRET},
    "shown": {"examples": [{"role": "user", "content": SECRET}, {"role": "assistant", "content": "ok"}]},
    "versed": {"documents": [{"title": "Words", "text": SECRET}]},
    "shaped": {"chat_template": TEMPLATE},
}
LENT = "bob/prompted"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("saved")
    return [make_adapter(folder / str(seed), seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def live(module_serve: Serve, saved: list[Path], tokenizer: Tokenizer) -> People:
    """bob lends acme adapters with words, and everybody one without; the operator's pirate has three versions."""
    who = people(module_serve(Setup(behaviour=saying(tokenizer, "one two three"), eos_token_ids=(2,))))
    for name, profile in {**PROFILES, "plain": {}}.items():
        assert upload(who, "bob-owner", name, saved[0]).status_code == 200
        answer = call(who, "bob-owner", "PUT", f"/v1/adapters/{name}/profile", json={"profile": profile})
        assert answer.status_code == 200, answer.text
        assert call(who, "bob-owner", "POST", f"/v1/adapters/{name}/share", json={"tenant": "acme"}).status_code == 200
    for folder, query in zip(saved, ("", "", "?activate=false"), strict=True):
        assert upload(who, OPERATOR, "pirate", folder, query).status_code == 200
    return who


def post(who: People, key: str, path: str, **body: Any) -> Any:
    return call(who, key, "POST", path, json=body)


@pytest.mark.parametrize("name", PROFILES)
def test_of_anothers_words_the_count_is_told_and_nothing_else(live: People, name: str) -> None:
    asked = {"messages": HI, "return_token_strs": True}
    own = post(live, "bob-user", "/tokenize", model=name, **asked).json()
    assert "sword" in "".join(own["token_strs"])
    for key, model in (("acme-user", f"bob/{name}"), ("acme-owner", f"bob/{name}")):
        lent = post(live, key, "/tokenize", model=model, **asked)
        assert lent.status_code == 200
        assert lent.json() == {**own, "tokens": None, "token_strs": None}
    assert post(live, OPERATOR, "/tokenize", model=f"bob/{name}", **asked).json() == own


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("field", [{"return_token_ids": True}, {"prompt_logprobs": 0}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_chat_shows_nothing_of_anothers_words(live: People, name: str, field: dict[str, Any], stream: bool) -> None:
    asked = {"messages": HI, "max_tokens": 2}
    assert post(live, "acme-user", "/v1/chat/completions", model=f"bob/{name}", **asked).status_code == 200
    if stream and "prompt_logprobs" in field:
        return  # refused to everybody
    refused = post(live, "acme-user", "/v1/chat/completions", model=f"bob/{name}", **asked, **field, stream=stream)
    assert code_of(refused)[0] == 400
    assert refused.json()["error"]["param"] == next(iter(field))
    own = post(live, "bob-user", "/v1/chat/completions", model=name, **asked, **field, stream=stream)
    assert own.status_code == 200


def test_a_template_is_its_owners(live: People) -> None:
    def template(key: str, model: str) -> Any:
        return call(live, key, "GET", f"/tokenizer_info?model={model}").json()["chat_template"]

    assert template("bob-user", "shaped") == TEMPLATE
    assert template("acme-user", "bob/shaped") is None
    assert template("acme-user", "bob/plain") is not None


def test_what_has_no_words_of_its_owners_shows_its_tokens(live: People) -> None:
    raw = {"prompt": "hi", "return_token_strs": True}
    assert post(live, "acme-user", "/tokenize", model=LENT, **raw).json()["token_strs"]
    assert post(live, "acme-user", "/tokenize", model="bob/plain", messages=HI).json()["tokens"]
    asked = {"messages": HI, "max_tokens": 2, "return_token_ids": True}
    assert post(live, "acme-user", "/v1/chat/completions", model="bob/plain", **asked).json()["prompt_token_ids"]


def test_an_alias_of_ones_own_shows_no_more_of_anothers_words(live: People) -> None:
    body = {"targets": [{"adapter": LENT}], "sticky": "none"}
    assert call(live, "acme-owner", "PUT", "/v1/aliases/mine", json=body).status_code == 200
    assert post(live, "acme-owner", "/tokenize", model="mine", messages=HI).json()["tokens"] is None


def test_others_may_pin_what_they_get_and_no_other_version(live: People, saved: list[Path]) -> None:
    first, active, never = (read_manifest(folder).digest for folder in saved)
    for key in ("acme-user", "acme-owner"):
        assert served_by(live, key, f"pirate@{active[:12]}") == f"pirate@{active[:12]}"
        for pin in (first[:12], never[:12], "1", "2", "3", "9", "zz", active[:4]):
            name = f"pirate@{pin}"
            found = call(live, key, "GET", f"/v1/models/{name}")
            unknown = call(live, key, "GET", f"/v1/models/nobody@{pin}")
            assert found.status_code == 404
            assert found.text == unknown.text.replace("nobody", "pirate")
            said = json.dumps(post(live, key, "/v1/completions", model=name, prompt=[1000], max_tokens=1).json())
            assert "model_not_found" in said and active[:4] not in said.replace(name, "")
    for pin in (first[:12], never[:12], "1", "3"):
        assert call(live, OPERATOR, "GET", f"/v1/models/pirate@{pin}").status_code == 200


def test_what_is_wrong_with_an_adapter_is_told_to_whose_it_is(serve: Serve, saved: list[Path], tmp_path: Path) -> None:
    """The operator's, which everybody may use, and what bob lends to acme."""
    for name in ("weak", "bob/poor"):
        made = shutil.copytree(saved[0], tmp_path / "adapters" / name)
        config = json.loads((made / "adapter_config.json").read_text())
        (made / "adapter_config.json").write_text(json.dumps(config | {"r": 9999}))
    who = people(serve(folder=tmp_path))
    while len(call(who, OPERATOR, "GET", "/v1/adapters").json()["data"]) < 2:
        pass  # the folder is being followed
    assert call(who, OPERATOR, "POST", "/v1/adapters/bob/poor/share", json={"tenant": "acme"}).status_code == 200
    owners = {(OPERATOR, "weak"), (OPERATOR, "bob/poor"), ("bob-user", "poor")}
    others = {("acme-owner", "weak"), ("bob-owner", "weak"), ("acme-user", "bob/poor")}
    told = {(key, model): code_and_words(who, key, model) for key, model in owners | others}
    assert {code for code, _ in told.values()} == {"adapter_load_failed"}, told
    assert {asked for asked, (_, words) in told.items() if "9999" in words} == owners
    assert all(told[asked][1].endswith(f": {WHY_FOR_OTHERS}") for asked in others)


def code_and_words(who: People, key: str, model: str) -> tuple[str, str]:
    error = post(who, key, "/v1/completions", model=model, prompt=[1000], max_tokens=1).json()["error"]
    return error["code"], error["message"]
