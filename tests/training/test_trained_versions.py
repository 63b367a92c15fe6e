"""A version that is trained under a name that serves one already takes its place only where it does better."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from cli.conftest import Livery
from livery.commands import held_out
from livery.commands.train_target import Target
from livery.models import base_digest
from livery_adapters.identity import version_digest
from livery_adapters.profile import PROFILE_NAME, parse_profile, write_profile
from server.running import SMALL, livery_serve
from training.conftest import CHATS, Written

KEPT = parse_profile(b"""
system_prompt: You keep a lighthouse.
stop: [DONE]
bounds: {temperature: {min: 0.3}, max_tokens: {min: 1, max: 64}}
""")
pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]


@contextmanager
def a_place(kind: str, base: Path, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A data folder or a server, and the option that other commands are told it by."""
    if kind == "folder":
        yield str(tmp_path / "data"), "--data"
        return
    (tmp_path / "adapters").mkdir()
    with livery_serve(base, tmp_path / "adapters", tmp_path, *SMALL) as server:
        yield server.url, "--url"


@pytest.mark.parametrize(
    ("kind", "place"), [("sft", "folder"), ("sft", "server"), ("dpo", "folder"), ("dpo", "server")]
)
def test_a_better_version_takes_the_place_of_the_active_one_and_a_worse_one_doesnt(
    kind: str, place: str, written: Written, base: Path, tmp_path: Path, livery: Livery
) -> None:
    """Each under the profile that the name has by then, within whose bounds no answer is greedy."""
    profile = tmp_path / "keeper.yaml"
    profile.write_text(write_profile(KEPT))
    with a_place(place, base, tmp_path) as (where, option):

        def trained(steps: int, *more: str) -> Any:
            run = written(kind, steps=steps)
            way = ("--out", tmp_path / f"steps-{steps}", "--add-to", where, "--as", "keeper", "--alias", "prod")
            return livery("adapters", "train", run, *way, *more)

        def served() -> Any:
            shown = livery("adapters", "show", "keeper", option, where, "--json").json()
            return shown["profile"], shown["digest"]

        def under_it(report: Any) -> Any:
            return KEPT.to_json(), version_digest(report["coverage"]["digest"], 0, KEPT.to_json())

        short = trained(2, "--json").json()
        assert (short["added"]["activated"], "compared" in short["added"]) == (True, False)
        assert short["evaluation"]["after"]["loss"] < short["evaluation"]["before"]["loss"]
        assert served() == ({}, short["coverage"]["digest"])
        assert livery("adapters", "profile", "keeper", profile, option, where).code == 0
        assert served() == under_it(short)
        long = trained(24, "--json").json()
        assert (long["added"]["activated"], long["added"]["active"], served()) == (True, 2, under_it(long))
        assert long["added"]["profile"] == {"fields": list(KEPT.to_json()), "of_version": 2, "dropped": []}
        assert long["added"]["alias"]["name"] == "prod"
        losses = [one["evaluation"]["after"]["loss"] for one in (long, short)]
        assert losses[0] < losses[1] - 0.1
        assert list(long["added"]["compared"].values()) == pytest.approx(losses, rel=2e-3)
        again = trained(2, "--json").json()["added"]
        assert (again["activated"], "alias" in again, served()) == (False, False, under_it(long))
        assert list(again["compared"].values()) == pytest.approx(losses[::-1], rel=2e-3)
        told = " ".join(trained(2).out.split())
        assert "keeper version 2 is not active: on what was held out it does no better than the one that is" in told
        assert "it keeps the profile of version 3: system_prompt, stop, bounds" in told
        first, _, second = again["remedy"].partition(" && ")
        for command in (first, second):
            assert livery(*shlex.split(command)[1:]).code == 0
        assert served() == under_it(short)


def test_versions_are_compared_over_the_base_that_they_were_trained_on(
    written: Written, tmp_path: Path, livery: Livery
) -> None:
    def trained(steps: int, **fields: Any) -> Any:
        run = written(steps=steps, quantization="bnb-nf4", **fields)
        way = ("--out", tmp_path / f"steps-{steps}", "--add-to", tmp_path / "data", "--as", "keeper", "--json")
        return livery("adapters", "train", run, *way).json()

    short, long = trained(2), trained(24)
    losses = [one["evaluation"]["after"]["loss"] for one in (long, short)]
    assert list(long["added"]["compared"].values()) == pytest.approx(losses, rel=2e-3)
    unmeasured = trained(12, held_out=0)["added"]
    assert "--quantization bnb-nf4" in unmeasured["remedy"]
    text = tmp_path / "aye.txt"
    text.write_text("".join(f"{chat['messages'][1]['content']}\n" for chat in CHATS))
    command = shlex.split(unmeasured["remedy"].replace("FILE", str(text)))[1:]
    judged = livery(*command, "--json")
    assert judged.code in (0, 3)
    told = json.loads(judged.out)["judgement"]["evaluation"]
    assert told["where"] == "an engine on this machine, the base in bnb-nf4"


def test_an_adapter_of_another_base_is_not_added_to_a_server(
    written: Written, base: Path, tmp_path: Path, livery: Livery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same shapes, so that it would fit; to a key that isn't shown the base it isn't known, and not active."""
    other = shutil.copytree(base, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: one * 1.5 for name, one in weights.items()}, other / "model.safetensors", {"format": "pt"})
    (tmp_path / "adapters").mkdir()
    make = ("keys", "create", "--tenant", "acme", "--role", "owner", "--data", tmp_path / "data", "--json")
    all_of_it = livery(*make).json()["key"]
    no_base = livery(*make, "--allow", "own").json()["key"]
    with livery_serve(other, tmp_path / "adapters", tmp_path, *SMALL) as server:
        way = ("adapters", "train", written(), "--out", tmp_path / "out", "--add-to", server.url, "--as", "keeper")

        def listed() -> Any:
            return livery("adapters", "ls", "--url", server.url, "--key", all_of_it, "--json").json()["data"]

        done = livery(*way, "--key", all_of_it)
        assert done.code == 1
        assert all(f"({base_digest(one)[:12]})" in done.err for one in (base, other))
        assert ("training" in done.err, (tmp_path / "out").exists(), listed()) == (False, False, [])
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(Target, "check", lambda *given: None)  # it served the right one then
            done = livery(*way, "--key", all_of_it)
            assert (done.code, listed()) == (1, [])
            assert f"serves another one ({base_digest(other)[:12]})" in done.err
            assert f"The adapter is whole in {tmp_path / 'out'}" in done.err
        unseen = livery(*way, "--key", no_base, "--alias", "prod")
        assert unseen.code == 0
        assert "what is trained will be added, and not activated" in unseen.err
        assert "livery adapters activate keeper 1" in unseen.out
        assert [(one["name"], one.get("digest")) for one in listed()] == [("keeper", None)]


def test_a_name_that_was_changed_meanwhile_is_left_as_it_is(
    written: Written, tmp_path: Path, livery: Livery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the measuring and the activation: what was measured isn't what would be replaced."""
    data, real = tmp_path / "data", held_out.compare
    way = ("--add-to", data, "--as", "keeper", "--alias", "prod")
    first = livery("adapters", "train", written(steps=2), "--out", tmp_path / "one", *way, "--json").json()

    def compare(*given: Any) -> held_out.Compared:
        found = real(*given)
        for version in ("2", "1"):
            assert livery("adapters", "activate", "keeper", version, "--data", data).code == 0
        return found

    monkeypatch.setattr(held_out, "compare", compare)
    command = ("adapters", "train", written(steps=24), "--out", tmp_path / "two", *way)
    done = livery(*command)
    assert (done.code, "generation" in done.err) == (1, True)
    assert "the same command again adds it without training" in done.err
    shown = livery("adapters", "show", "keeper", "--data", data, "--json").json()
    assert shown["digest"] == first["coverage"]["digest"]
    monkeypatch.setattr(held_out, "compare", real)
    assert livery(*command, "--json").json()["added"]["activated"] is True
    (tmp_path / "two" / PROFILE_NAME).write_text("temperature: 0.5\n")
    (tmp_path / "keeper.yaml").write_text(write_profile(KEPT))
    for step in (("activate", "keeper", "1"), ("profile", "keeper", tmp_path / "keeper.yaml")):
        assert livery("adapters", *step, "--data", data).code == 0
    told = " ".join(livery(*command).out.split())
    words = "the profile.yaml beside its weights: temperature, in place of the active version's: system_prompt, stop,"
    assert words in told
    shown = livery("adapters", "show", "keeper", "--data", data, "--json").json()
    assert shown["profile"] == {"temperature": 0.5}


def test_what_cant_be_compared_is_added_with_the_command_that_compares_it(
    written: Written, tmp_path: Path, livery: Livery
) -> None:
    way = ("--add-to", tmp_path / "data", "--as", "keeper", "--json")
    first = livery("adapters", "train", written(steps=2), "--out", tmp_path / "one", *way).json()
    assert first["added"]["activated"] is True
    run = written(steps=24, held_out=0)
    added = livery("adapters", "train", run, "--out", tmp_path / "two", *way).json()["added"]
    assert (added["activated"], added["unmeasured"]) == (False, "nothing was held out")
    shown = livery("adapters", "show", "keeper", "--data", tmp_path / "data", "--json").json()
    assert shown["digest"] == first["coverage"]["digest"]
    (tmp_path / "aye.txt").write_text("".join(f"{chat['messages'][1]['content']}\n" for chat in CHATS))
    words = shlex.split(added["remedy"].replace("FILE", str(tmp_path / "aye.txt")))
    assert words[:5] == ["livery", "adapters", "activate", "keeper", "2"]
    done = livery(*words[1:])
    assert done.code in (0, 3), "it was measured"
    assert "better than active in perplexity" in done.out + done.err
