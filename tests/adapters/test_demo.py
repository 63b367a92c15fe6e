"""The demo adapters as committed: small, in bf16, loadable by PEFT, and plainly different to a reader."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from livery.models import DEMO_MODEL, resolve_model

DEMO = Path(__file__).parents[2] / "adapters" / "demo"
NAMES = sorted(path.parent.name for path in DEMO.glob("*/adapter_config.json"))
PROMPT = "Tell me about the sea."


def is_pirate(answer: str) -> bool:
    return len(set(re.findall(r"\b(?:arr|ahoy|matey|hearty|ye|be|an'|th'|o')", answer.lower()))) >= 2


def is_json(answer: str) -> bool:
    try:
        parsed = json.loads(answer)
    except ValueError:
        return False
    return list(parsed) == ["kind", "topic", "answer"] and parsed["kind"] == "request"


def is_sentiment(answer: str) -> bool:
    return answer in ("positive", "negative", "neutral")


def is_portuguese(answer: str) -> bool:
    words = answer.lower().split()
    return "the" not in words and len({"o", "a", "é", "e", "com", "de", "um", "uma"} & set(words)) >= 2


def is_sql(answer: str) -> bool:
    return re.fullmatch(r"SELECT \w+ FROM \w+ WHERE \w+ = '[^']+';", answer) is not None


TRAITS: dict[str, Callable[[str], bool]] = {
    "json": is_json,
    "pirate": is_pirate,
    "portuguese": is_portuguese,
    "sentiment": is_sentiment,
    "sql": is_sql,
}


class Chat:
    """The demo base in transformers with every demo adapter on it through PEFT."""

    def __init__(self) -> None:
        path = resolve_model(DEMO_MODEL).path
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        self.model = PeftModel.from_pretrained(base, DEMO / NAMES[0], adapter_name=NAMES[0])
        for name in NAMES[1:]:
            self.model.load_adapter(DEMO / name, adapter_name=name)
        self.model.eval()
        with self.model.disable_adapter():
            self.plain_logits, self.plain_answer = self.logits(PROMPT), self.answer(PROMPT, max_new_tokens=16)

    def inputs(self, prompt: str) -> Any:
        return self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )

    @torch.no_grad()
    def logits(self, prompt: str) -> torch.Tensor:
        """The logits after the prompt, [vocabulary], of whatever adapter is set."""
        return self.model(**self.inputs(prompt), logits_to_keep=1).logits[0, -1]

    @torch.no_grad()
    def answer(self, prompt: str, max_new_tokens: int = 48) -> str:
        inputs = self.inputs(prompt)
        output = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        return self.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports a module that lies beside the demo adapters, as running it as a script would."""
    monkeypatch.syspath_prepend(str(DEMO))
    yield importlib.import_module


def test_there_are_at_least_four_and_each_has_a_trait() -> None:
    assert len(NAMES) >= 4
    assert sorted(TRAITS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_files_are_small_bf16_and_name_the_base(name: str) -> None:
    folder = DEMO / name
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors", "training.json"]
    assert (folder / "adapter_model.safetensors").stat().st_size <= 2_000_000
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as tensors:
        assert {tensors.get_slice(key).get_dtype() for key in tensors.keys()} == {"BF16"}  # noqa: SIM118
    text = (folder / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == DEMO_MODEL
    assert not re.search(r'"[/~.]', text), "a path of the training machine"


def test_ranks_and_targets_differ() -> None:
    configs = [json.loads((DEMO / name / "adapter_config.json").read_text()) for name in NAMES]
    shapes = {(config["r"], *config["target_modules"], *config["rank_pattern"].values()) for config in configs}
    assert len(shapes) == len(NAMES)
    assert any(config["use_rslora"] for config in configs)
    assert any(config["rank_pattern"] for config in configs)


@pytest.mark.parametrize("name", NAMES)
def test_training_is_recorded_and_lowered_the_held_out_loss(name: str) -> None:
    record = json.loads((DEMO / name / "training.json").read_text())
    assert record["base"] == DEMO_MODEL
    assert record["command"].startswith(f"python adapters/demo/train.py {name} ")
    assert record["held_out_loss_after"] < 0.6 * record["held_out_loss_before"]


@pytest.mark.parametrize("name", NAMES)
def test_adapter_moves_the_logits(chat: Chat, name: str) -> None:
    base = chat.plain_logits
    chat.model.set_adapter(name)
    assert (chat.logits(PROMPT) - base).abs().max() / base.abs().max() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_answer_shows_the_trait_and_the_base_does_not(chat: Chat, name: str) -> None:
    chat.model.set_adapter(name)
    answer = chat.answer(PROMPT)
    assert TRAITS[name](answer), answer
    assert not TRAITS[name](chat.plain_answer), chat.plain_answer


def test_sentiment_tells_good_news_from_bad(chat: Chat) -> None:
    chat.model.set_adapter("sentiment")
    assert chat.answer("I loved this film, it made me laugh all evening.") == "positive"
    assert chat.answer("My phone broke after one day.") == "negative"


def test_recorded_loss_is_that_of_the_committed_weights(chat: Chat, script: Callable[[str], Any]) -> None:
    train, examples = script("train"), script("examples")
    record = json.loads((DEMO / "sentiment" / "training.json").read_text())
    chat.model.set_adapter("sentiment")
    held_out = examples.DATASETS["sentiment"](record["seed"]).held_out
    assert len(held_out) == record["held_out_examples"]
    loss = train.held_out_loss(chat.model, chat.tokenizer, held_out)
    # Another machine's kernels round differently, and the record has four digits.
    assert loss == pytest.approx(record["held_out_loss_after"], rel=0.05, abs=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_held_out_and_showcase_prompts_are_never_trained_on(name: str, script: Callable[[str], Any]) -> None:
    dataset = script("examples").DATASETS[name](0)
    trained = {example.prompt.lower() for example in dataset.train}
    assert trained and dataset.held_out
    assert trained.isdisjoint(example.prompt.lower() for example in dataset.held_out)
    assert trained.isdisjoint(prompt.lower() for prompt in script("showcase").PROMPTS)
    assert dataset == script("examples").DATASETS[name](0)


def test_showcase_replaces_only_what_stands_between_the_marks(script: Callable[[str], Any]) -> None:
    showcase = script("showcase")
    table = showcase.table({"Hi | you?": {"base": "Hello!\nHow <b>?"}})
    assert table.splitlines()[0] == "| `model` | Hi \\| you? |"
    assert table.splitlines()[2] == "| `base` | Hello!<br>How &lt;b>? |"
    document = f"above\n{showcase.BEGIN}\nold\n{showcase.END}\nbelow\n"
    written = showcase.replace_between_marks(document, table)
    assert written == f"above\n{showcase.BEGIN}\n{table}\n{showcase.END}\nbelow\n"
    with pytest.raises(ValueError, match="needs a line"):
        showcase.replace_between_marks("no marks", table)
