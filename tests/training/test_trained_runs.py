"""Real runs over a tiny base: killed, on a full disk, diverging, over a quantised base, added where they are served."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cli.conftest import Livery
from livery.commands import training
from livery.training import model
from livery_adapters.tensor_file import WEIGHTS_NAME
from server.running import SMALL, livery_serve
from training.conftest import CHATS, Written

pytestmark = [pytest.mark.train, pytest.mark.filterwarnings("ignore")]

STEPS, EVERY = 20, 4
BNB = "bitsandbytes"
LIVERY = [sys.executable, "-c", "from livery.cli import main; main()"]


@contextmanager
def under_way(run: Path, out: Path, past: int) -> Iterator[subprocess.Popen[str]]:
    """A run in a process of its own that has told of step `past`; its checkpoints before that are whole."""
    command = [*LIVERY, "adapters", "train", str(run), "--out", str(out)]
    environ = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environ)
    assert process.stderr is not None
    try:
        said = ""
        while f"step {past} of" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


KINDS = {
    "sft": ("sft", {"adapter": {"r": 4, "lora_dropout": 0.2, "use_dora": True}}),
    "dpo": ("dpo", {"adapter": {"r": 4, "use_rslora": True}, "schedule": "cosine"}),
    "dpo of an adapter": ("dpo", {"start_from": "first"}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_killed_run_ends_in_the_adapter_of_one_that_was_not(
    name: str, written: Written, tmp_path: Path, livery: Livery
) -> None:
    kind, fields = KINDS[name]
    if "start_from" in fields:
        assert livery("adapters", "train", written(), "--out", tmp_path / fields["start_from"]).code == 0
    run = written(kind, steps=STEPS, checkpoint_every=EVERY, **fields)
    whole = livery("adapters", "train", run, "--out", tmp_path / "whole", "--json").json()
    with under_way(run, tmp_path / "killed", past=2 * EVERY + 2) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "killed").exists()
    again = livery("adapters", "train", run, "--out", tmp_path / "killed", "--json").json()
    assert again["resumed_from"] in range(2 * EVERY, STEPS, EVERY)
    assert again["losses"] == whole["losses"]
    assert again["held_out_losses"] == whole["held_out_losses"]
    assert [step for step, _ in again["losses"]] == list(range(1, STEPS + 1))
    assert [step for step, _ in again["held_out_losses"]] == [0, *range(EVERY, STEPS + 1, EVERY)]
    assert (tmp_path / "killed" / WEIGHTS_NAME).read_bytes() == (tmp_path / "whole" / WEIGHTS_NAME).read_bytes()
    assert not list(tmp_path.glob(".*.training"))


def test_a_full_disk_leaves_nothing_half_done_and_is_gone_on_from(
    written: Written, tmp_path: Path, livery: Livery
) -> None:
    run = written(steps=STEPS, checkpoint_every=EVERY)
    data = tmp_path / "data"
    whole = livery("adapters", "train", run, "--out", tmp_path / "whole", "--json").json()
    with under_way(run, tmp_path / "full", past=2 * EVERY + 2) as process:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))  # no file may grow beyond
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 1
    assert "can't be written: " in said and "is kept in" in said, said
    assert "make room and give the same command again" in said
    assert "Traceback" not in said
    assert not (tmp_path / "full").exists() and not data.exists()
    again = livery("adapters", "train", run, "--out", tmp_path / "full", "--json").json()
    assert again["resumed_from"] >= EVERY
    assert again["losses"] == whole["losses"]
    assert (tmp_path / "full" / WEIGHTS_NAME).read_bytes() == (tmp_path / "whole" / WEIGHTS_NAME).read_bytes()


def test_other_settings_dont_go_on_with_it(
    written: Written, tmp_path: Path, livery: Livery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does another device, or another version of what holds the base."""
    run = written(steps=STEPS, checkpoint_every=EVERY, quantization="bnb-nf4")
    with under_way(run, tmp_path / "out", past=2 * EVERY + 2):
        pass
    told = importlib.metadata.version
    for what, patched in {
        "'bitsandbytes': '0.0.1'": (importlib.metadata, "version", lambda name: {BNB: "0.0.1"}.get(name) or told(name)),
        "device was 'cpu' and is 'cuda'; dtype was 'float32' and is": (model, "chosen_device", lambda run: "cuda"),
    }.items():
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(*patched)
            done = livery("adapters", "train", run, "--out", tmp_path / "out")
        assert done.code == 1
        assert "holds unfinished training with other settings" in done.err and what in done.err
    written(steps=STEPS, checkpoint_every=EVERY, quantization="bnb-nf4", learning_rate=1.0)
    done = livery("adapters", "train", run, "--out", tmp_path / "out")
    assert done.code == 1
    assert "holds unfinished training with other settings" in done.err
    assert "'learning_rate': 0.005" in done.err and "'learning_rate': 1.0" in done.err


def test_another_chat_template_doesnt_go_on_with_it(
    base: Path, written: Written, tmp_path: Path, livery: Livery
) -> None:
    """The weights are the same; what is learnt isn't."""
    own = shutil.copytree(base, tmp_path / "own")
    run = written(base=str(own), steps=STEPS, checkpoint_every=EVERY)
    with under_way(run, tmp_path / "out", past=EVERY + 2):
        pass
    template = own / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "mate"))
    done = livery("adapters", "train", run, "--out", tmp_path / "out")
    assert (done.code, "unfinished training with other settings (examples_as_tokens was" in done.err) == (1, True)


@pytest.fixture
def day(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Has clocks here show about noon of a day, as days are counted from one."""
    hours = (12 - datetime.now(UTC).hour) % 24 - 24

    def shift(days: int) -> None:
        monkeypatch.setenv("TZ", f"NOON{-hours - 24 * days:+d}")  # POSIX counts westwards
        time.tzset()

    yield shift
    monkeypatch.undo()
    time.tzset()


def test_a_template_that_writes_the_day_writes_the_same_one_on_the_next(
    base: Path, written: Written, tmp_path: Path, livery: Livery, day: Callable[[int], None]
) -> None:
    """As Llama 3.2 Instruct's does."""
    dated = shutil.copytree(base, tmp_path / "dated")
    template = dated / "chat_template.jinja"
    template.write_text("{{ 'Today is ' ~ strftime_now('%d %b %Y') }}\n" + template.read_text())
    run = written(base=str(dated), steps=STEPS, checkpoint_every=EVERY)
    day(0)
    assert livery("adapters", "train", run, "--out", tmp_path / "whole").code == 0
    with under_way(run, tmp_path / "killed", past=EVERY + 2):
        pass
    day(1)
    again = livery("adapters", "train", run, "--out", tmp_path / "killed", "--json").json()
    assert again["resumed_from"] >= EVERY
    assert (tmp_path / "killed" / WEIGHTS_NAME).read_bytes() == (tmp_path / "whole" / WEIGHTS_NAME).read_bytes()
    began = datetime.fromisoformat(again["settings"]["rendered_on"]).date()
    assert (datetime.now().date() - began).days == 1
    way = ("--out", tmp_path / "whole", "--add-to", tmp_path / "data", "--as", "keeper", "--json")
    assert livery("adapters", "train", run, *way).json()["added"]["activated"] is True


def test_a_loss_that_is_no_number_ends_it_with_words(written: Written, tmp_path: Path, livery: Livery) -> None:
    run = written(learning_rate=1e9, warmup=0, max_grad_norm=1e9, adapter={"lora_alpha": 1e9})
    done = livery("adapters", "train", run, "--out", tmp_path / "out")
    assert done.code == 1
    assert "the training diverged. Give a lower learning_rate" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stage", "room", "words"),
    [
        ("trainer.load_base", 1 << 18, "enough memory to load tiny; give a quantization"),
        ("trainer._fitted", 1 << 24, "enough memory to make a step of this run; give a smaller batch_size"),
        ("training._examined", 1 << 26, "it is trained, and kept in"),
    ],
)
def test_a_machine_that_is_too_small_is_told(
    stage: str, room: int, words: str, written: Written, tmp_path: Path
) -> None:
    """From where a stage begins the process gets `room` bytes more: for threads, and not for arrays."""
    command = [*LIVERY, "adapters", "train", str(written()), "--out", str(tmp_path / "out")]
    script = (
        "import resource, sys\n"
        "from livery.commands import training\n"
        "from livery.training import trainer\n"
        f"real = {stage}\n"
        "def limited(*given, **more):\n"
        "    used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        f"    resource.setrlimit(resource.RLIMIT_AS, (used + {room}, used + {room}))\n"
        "    return real(*given, **more)\n"
        f"{stage} = limited\n"
        f"sys.argv = ['livery', *{command[3:]!r}]\n"
        "from livery.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert words in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"adapter": {"r": 4, "target_modules": "all-linear", "use_rslora": True, "lora_alpha": 3}},
        {"adapter": {"r": 3, "target_modules": ["q_proj", "down_proj"], "use_dora": True, "layers": [1]}},
        {"adapter": {"r": 2, "target_modules": ["v_proj"], "modules_to_save": ["lm_head"]}},
        {"quantization": "bnb-nf4", "adapter": {"r": 4, "target_modules": ["q_proj", "up_proj"], "use_dora": True}},
        {"kind": "dpo", "loss": "ipo", "beta": 0.5},
        {"kind": "dpo", "loss": "hinge", "quantization": "bnb-nf4-double"},
        {"kind": "dpo", "quantization": "torchao-int8", "adapter": {"r": 4, "use_dora": True}},
    ],
    ids=["rslora", "dora", "head", "qlora", "ipo", "dpo over nf4", "dpo over int8"],
)
def test_what_peft_trained_is_what_the_engine_serves(
    fields: dict[str, Any], written: Written, tmp_path: Path, livery: Livery
) -> None:
    done = livery("adapters", "train", written(**fields), "--out", tmp_path / "out", "--json").json()
    found = done["evaluation"]
    assert found["after"]["loss"] < found["before"]["loss"], "it learnt"
    for when in ("before", "after"):
        assert found[when] == {name: pytest.approx(value, rel=2e-3) for name, value in found["peft"][when].items()}
    assert done["warnings"] == []
    assert done["held_out_losses"][0][1] == pytest.approx(found["before"]["loss"], rel=2e-3)
    assert done["coverage"]["dtypes"] == ["F32"], "TRL rounds to bf16 what it trains over a quantised base"
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    wanted = fields.get("adapter", {})
    assert (config["r"], config["use_dora"]) == (wanted.get("r", 8), wanted.get("use_dora", False))
    assert config["base_model_name_or_path"] == "tiny"
    assert str(tmp_path) not in (tmp_path / "out" / "adapter_config.json").read_text()
    assert (tmp_path / "out" / "loss.svg").read_text().startswith("<svg")


def test_modules_that_the_base_doesnt_have(written: Written, tmp_path: Path, livery: Livery) -> None:
    run = written(adapter={"target_modules": ["qkv"]})
    done = livery("adapters", "train", run, "--out", tmp_path / "out")
    assert (done.code, "target_modules has qkv, which no module of" in done.err) == (1, True)
    run = written(adapter={"target_modules": ["q_proj", "norm"]})
    done = livery("adapters", "train", run, "--out", tmp_path / "out")
    assert (done.code, "this adapter can't be trained on tiny" in done.err, "RMSNorm" in done.err) == (1, True, True)
    run = written(max_length=512)
    done = livery("adapters", "train", run, "--out", tmp_path / "out")
    assert (done.code, "max_length is 512, and the base reads 256 tokens" in done.err) == (1, True)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_it_is_added_to_a_data_folder_behind_an_alias(written: Written, tmp_path: Path, livery: Livery) -> None:
    """Of a rank that servers don't take by default."""
    run, data = written(adapter={"r": 300}), tmp_path / "data"
    way = ("adapters", "train", run, "--out", tmp_path / "out", "--add-to", data, "--as", "keeper", "--alias", "prod")
    found = livery(*way, "--json").json()
    assert found["coverage"]["ranks"] == [300]
    assert (found["added"]["adapter"]["name"], found["added"]["adapter"]["version"]) == ("keeper", 1)
    assert (
        livery("adapters", "show", "keeper", "--data", data, "--json").json()["digest"] == found["coverage"]["digest"]
    )
    targets = livery("adapters", "alias", "prod", "--data", data, "--json").json()["targets"]
    assert targets == [{"adapter": "keeper", "weight": 1.0}]
    before = (tmp_path / "out" / WEIGHTS_NAME).stat().st_mtime_ns
    again = livery(*way, "--json").json()
    assert (tmp_path / "out" / WEIGHTS_NAME).stat().st_mtime_ns == before, "it wasn't trained again"
    assert again["losses"] == found["losses"]
    written(seed=1, adapter={"r": 300})
    other = livery(*way)
    assert (other.code, "there is something at" in other.err) == (1, True)


def test_a_running_server_serves_it_behind_an_alias(
    written: Written, base: Path, tmp_path: Path, livery: Livery
) -> None:
    (tmp_path / "adapters").mkdir()
    run, way = written(), ("--as", "keeper", "--alias", "prod", "--json")
    with livery_serve(base, tmp_path / "adapters", tmp_path, *SMALL) as server:
        found = livery("adapters", "train", run, "--out", tmp_path / "out", "--add-to", server.url, *way).json()
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60)
        answer = client.chat.completions.with_raw_response.create(
            model="prod", messages=[{"role": "user", "content": "Count to 3."}], max_tokens=4
        )
        held = httpx.get(f"{server.url}/v1/adapters/keeper").json()
    assert answer.headers["x-livery-adapter"].startswith("keeper@")
    assert (held["state"], held["proven"], held["digest"]) == ("ready", True, found["coverage"]["digest"])


def test_what_fails_behind_the_training_costs_no_training(written: Written, tmp_path: Path, livery: Livery) -> None:
    data = tmp_path / "data"
    way = ("adapters", "train", written(), "--add-to", data)
    assert livery(*way, "--out", tmp_path / "one", "--as", "prod").code == 0
    written(seed=1)
    done = livery(*way, "--out", tmp_path / "two", "--as", "keeper", "--alias", "prod")
    assert done.code == 1
    assert "'prod'" in done.err and "the same command again adds it without training" in done.err
    before = (tmp_path / "two" / WEIGHTS_NAME).stat().st_mtime_ns
    added = livery(*way, "--out", tmp_path / "two", "--as", "keeper", "--alias", "live", "--json").json()["added"]
    assert (added["adapter"]["version"], added["alias"]["name"]) == (1, "live")
    assert (tmp_path / "two" / WEIGHTS_NAME).stat().st_mtime_ns == before, "it wasn't trained again"


def test_a_run_that_ended_while_it_was_measured_isnt_trained_again(
    written: Written, tmp_path: Path, livery: Livery, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = written()
    whole = livery("adapters", "train", run, "--out", tmp_path / "whole", "--json").json()

    def no_memory(*given: Any) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as once:
        once.setattr(training, "_examined", no_memory)
        done = livery("adapters", "train", run, "--out", tmp_path / "out")
    assert (done.code, (tmp_path / "out").exists()) == (1, False)
    assert "there isn't enough memory to check and measure the adapter as a server would; it is trained" in done.err
    again = livery("adapters", "train", run, "--out", tmp_path / "out", "--json").json()
    assert again["resumed_from"] == again["steps"] == whole["steps"]
    assert again["losses"] == whole["losses"]
    assert (tmp_path / "out" / WEIGHTS_NAME).read_bytes() == (tmp_path / "whole" / WEIGHTS_NAME).read_bytes()


def test_what_learnt_nothing_is_added_but_not_served(written: Written, tmp_path: Path, livery: Livery) -> None:
    """Answers that what is held out contradicts."""
    run, data = written(steps=12, learning_rate=0.05, held_out_data=["other.jsonl"], held_out=0), tmp_path / "data"
    wrong = {"messages": [CHATS[0]["messages"][0], {"role": "assistant", "content": "zq xv jk " * 6}]}
    (tmp_path / "other.jsonl").write_text(json.dumps(wrong) + "\n")
    way = ("adapters", "train", run, "--out", tmp_path / "out", "--add-to", data, "--as", "keeper", "--alias", "prod")
    found = livery(*way, "--json").json()
    assert found["evaluation"]["after"]["loss"] > found["evaluation"]["before"]["loss"]
    assert any("it learnt nothing that holds there" in warning for warning in found["warnings"])
    assert found["added"]["activated"] is False and "alias" not in found["added"]
    assert livery("adapters", "versions", "keeper", "--data", data, "--json").json()["data"][0]["active"] is False
    assert livery("adapters", "aliases", "--data", data, "--json").json()["data"] == []
