"""A trainer pushes version after version of one adapter under requests that never pause: each answer is of a version
that was active when it was admitted, its log-probabilities are PEFT's for that version, and nothing piles up. And the
example of a trainer that does so.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from peft import LoraConfig

from chaos.common import PROC, children, descriptors
from engine.families import LLAMA_LINEAR
from engine.oracle import Oracle, save_adapter
from server.pushed import PROMPTS, Answer, Trained
from server.running import SMALL, RunningServer, livery_serve, tiny_model
from sizes import wished

EXAMPLE = Path(__file__).parents[2] / "adapters" / "examples" / "reinforce.py"
PUSHES = wished("LIVERY_PUSHES", 50)
STREAMS = 2
SETTLED = 20  # pushes after which as much is open as ever will be
JUDGED = 12  # answers that PEFT is asked about
TOLERANCE = 2e-3  # of a log-probability, over logits that spread by some tens


@dataclass(frozen=True)
class Scene:
    """A server over a tiny model, its data folder, and the first version of an adapter."""

    server: RunningServer
    base: Path
    data: Path
    first: Path


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("pushed")
    base = tiny_model(folder / "tiny")
    first = save_adapter(base, folder / "pool" / "policy", 1, LoraConfig(r=4, target_modules=LLAMA_LINEAR))
    (folder / "adapters").mkdir()
    flags = ("--threads", "1", "--log-level", "warning", *SMALL)
    with livery_serve(base, folder / "adapters", folder, *flags) as server:
        yield Scene(server, base, folder / "data", first)


@pytest.mark.filterwarnings("ignore::UserWarning")
async def test_many_versions_under_running_requests(scene: Scene) -> None:
    server = scene.server
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        trained = Trained(client, scene.first, seed=7)
        await trained.upload()
        await trained.run(SETTLED, STREAMS)
        open_then = opened(server.pid)
        await trained.run(PUSHES - SETTLED, STREAMS)
        history = (await client.get("/v1/adapters/policy/versions")).json()["data"]
        assert [one["version"] for one in history] == [PUSHES + 1, PUSHES]
        await until_collected(client, scene.data, scene.first)
        assert opened(server.pid) <= open_then + 4, "descriptors pile up"
    trained.check()
    assert trained.outcomes["length"] > STREAMS, trained.outcomes
    assert trained.outcomes["abort"] > 0, trained.outcomes
    made = {answer.fingerprint for answer in trained.answers}
    assert len(made) > SETTLED, "most versions served nobody"
    judge(scene.base, trained)


def test_the_reinforce_example_trains_on_what_the_server_says(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log-probabilities are the server's, so that the importance weights of the first step are 1."""
    found = importlib.util.spec_from_file_location("reinforce", EXAMPLE)
    assert found is not None
    assert found.loader is not None
    example = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, "reinforce", example)  # where dataclasses look for their types
    found.loader.exec_module(example)
    options = {"url": scene.server.url, "model": scene.base, "name": "rolled", "out": tmp_path / "curve"}
    options |= {"key": "sk-not-to-be-told"}
    options |= {"iterations": 2, "prompts": 2, "answers": 3, "tokens": 8, "rate": 0.05}
    asked = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["reinforce.py", *asked])
    example.main()
    told = json.loads((tmp_path / "curve.json").read_text())
    assert told["origin"]["command"].startswith("reinforce.py --url")
    assert "sk-not-to-be-told" not in (tmp_path / "curve.json").read_text()
    assert [row["version"] for row in told["iterations"]] == [1, 2]
    for row in told["iterations"]:
        assert row["largest_logprob_difference"] < TOLERANCE
        assert abs(row["importance"][0] - 1) < TOLERANCE < abs(row["importance"][1] - 1)
        assert 0 < row["tokens"] <= 2 * 3 * 8
    assert "</svg>" in (tmp_path / "curve.svg").read_text()
    assert [example.reward(text) for text in ("an apple is a fruit", "", "Only up")] == [0.8, 0.0, 1.0]


def opened(server: int) -> int:
    """Descriptors of a server and its engine."""
    return sum(map(descriptors, (server, *children(server)))) if PROC.is_dir() else 0


def judge(base: Path, trained: Trained) -> None:
    """The log-probabilities that came with answers are those that PEFT gives under the version that they name."""
    oracle = Oracle(base, 256)
    answers = [answer for answer in trained.answers if answer.tokens]
    chosen = answers[:: max(1, len(answers) // JUDGED)][:JUDGED]
    assert len({answer.fingerprint for answer in chosen}) > JUDGED // 2
    for answer in chosen:
        worst = max(map(abs, difference(oracle, trained, answer)))
        assert worst < TOLERANCE, f"{answer} is off by {worst}"
    one = chosen[0]
    other = next(version for version in trained.versions if version.fingerprint != one.fingerprint)
    apart = difference(oracle, trained, one, other.folder)
    assert max(map(abs, apart)) > 10 * TOLERANCE, "another version's would have passed"


def difference(oracle: Oracle, trained: Trained, answer: Answer, folder: Path | None = None) -> list[float]:
    prompt, own = PROMPTS[answer.prompt], list(answer.tokens)
    logits = oracle.logits([*prompt, *own], folder or trained.made_by(answer).folder)
    told = logits.log_softmax(-1)[len(prompt) - 1 : -1].gather(-1, logits.new_tensor(own).long()[:, None])[:, 0]
    return [float(ours) - theirs for ours, theirs in zip(answer.logprobs, told.tolist(), strict=True)]


async def until_collected(client: httpx.AsyncClient, data: Path, first: Path) -> None:
    """Of all versions two are on disk, and one in the engine's memory."""
    async with asyncio.timeout(60):
        while True:
            lines = (await client.get("/metrics")).text.splitlines()
            (held,) = [float(line.split()[1]) for line in lines if line.startswith("livery_adapter_memory_bytes ")]
            stored = list(data.rglob("adapter_model.safetensors"))
            one = (first / "adapter_model.safetensors").stat().st_size
            if len(stored) == 2 and 0 < held < 2 * one:
                return
            await asyncio.sleep(0)
