"""A run's YAML: what is wrong is named with its value, and what the README says of the fields is what the types do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from msgspec import inspect

from livery.engine.quantization import SCHEMES
from livery.training.fields import BEGIN, END, described, tables
from livery.training.run_file import AnyRun, Quantization, Run, SpecInvalid, parse_run, read_run

EXAMPLES = Path(__file__).parents[2] / "server" / "examples" / "train"
LEAST = "base: b\ndata: d.jsonl\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LEAST, "it has no kind; say what is trained, as in kind: sft (one of sft, dpo, cpt, raft)"),
        ("- 1", "it has no kind"),
        (LEAST + "kind: rlhf", "kind is 'rlhf'"),
        (LEAST + "kind: rlhf", "expected one of sft, dpo, cpt, raft"),
        ("kind: sft\ndata: d", "missing required field `base`"),
        ("kind: sft\nbase: b\ndata: []", "data: Expected `array` of length >= 1"),
        (LEAST + "kind: sft\nlearning_rate: -1", "learning_rate is -1: Expected `float` > 0.0"),
        (LEAST + "kind: sft\nquantization: q4", "quantization is 'q4'"),
        (LEAST + "kind: sft\nquantization: q4", "bnb-nf4"),
        (LEAST + "kind: sft\nbeta: 0.1", "unknown field `beta`"),
        (LEAST + "kind: sft\nadapter: {r: 0}", "adapter.r is 0: Expected `int` >= 1"),
        (LEAST + "kind: sft\nadapter: {target_modules: [all-linear, q_proj]}", "name it alone"),
        (LEAST + "kind: dpo\nstart_from: sft\nadapter: {r: 4}", "`adapter` is beside `start_from`, sft, whose rank"),
        (LEAST + "kind: sft\nheld_out: 1", "held_out is 1: Expected `float` < 1.0"),
        (LEAST + "kind: sft\nheld_out: 0.2\nheld_out_data: [e]", "give the share to keep back, or the files"),
        (LEAST + "kind: raft\nprompt: no places", "`prompt` has {documents} 0 times: it must be there once"),
        (LEAST + "kind: sft\nkind: dpo", "kind is given twice"),
        (LEAST + "kind: [sft", "expected ',' or ']'"),
        (LEAST + "kind: sft\nsteps: " + "1" * 5000, "a value can't be read: Exceeds the limit (4300 digits)"),
        (LEAST + "kind: sft\nseed: 2026-06-31", "a value can't be read: day is out of range"),
        (LEAST + 'kind: raft\nsystem: "\\ud83d"', "`system` contains half of a surrogate pair"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(SpecInvalid) as raised:
        parse_run(text, "my.yaml")
    assert str(raised.value).startswith("my.yaml: ")
    assert words in str(raised.value)


def test_a_file_that_isnt_there(tmp_path: Path) -> None:
    with pytest.raises(SpecInvalid, match="No such file or directory; give the path of a YAML file"):
        read_run(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(SpecInvalid, match="not UTF-8 text"):
        read_run(tmp_path / "bytes.yaml")


def test_numbers_with_an_exponent_are_numbers() -> None:
    run = parse_run(LEAST + "kind: sft\nlearning_rate: 2e-3\nadapter: {lora_alpha: 1E1}")
    assert (run.learning_rate, run.adapter.lora_alpha) == (2e-3, 10.0)


def test_one_file_may_be_named_without_a_list() -> None:
    run = parse_run("kind: sft\nbase: b\ndata: d\nheld_out_data: e\nadapter: {target_modules: q_proj}")
    assert (run.data, run.held_out_data, run.adapter.target_modules) == (("d",), ("e",), ("q_proj",))


def test_every_form_of_a_base_may_be_asked_for() -> None:
    assert set(get_args(Quantization)) == {"auto", *SCHEMES}


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_examples_are_runs(file: Path) -> None:
    run = read_run(file)
    assert all((file.parent / name).is_file() for name in run.data)


def test_the_readme_is_in_step_with_the_types() -> None:
    readme = EXAMPLES / "README.md"
    _, _, after = readme.read_text().partition(BEGIN)
    written, mark, _ = after.partition(END)
    assert mark, f"{readme} has no table"
    assert written.strip() == tables().strip(), f"run python -m livery.training.fields and put it into {readme}"


@pytest.mark.parametrize("kind", described().values(), ids=lambda kind: kind.__name__)
def test_every_field_is_explained(kind: type[msgspec.Struct]) -> None:
    told = inspect.type_info(kind)
    assert isinstance(told, inspect.StructType)
    words = (kind.__doc__ or "") + (Run.__doc__ or "" if kind in get_args(AnyRun) else "")
    explained = set(re.findall(r"`(\w+)[`:]", words))
    assert {field.name for field in told.fields} <= explained | ({"adapter"} if issubclass(kind, Run) else set())
