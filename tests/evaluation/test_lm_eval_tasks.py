"""lm-eval's tasks for several adapters at once say what lm-eval's own `hf` backend with PEFT says of each alone.

The tasks are YAML files over data that lie here: a choice, an answer word by word, and a text's perplexity.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.conftest import ADAPTERS
from livery.commands.eval_here import Found, Here, evaluate_found
from livery.evaluation.lm_eval_tasks import LmEvalTasks
from livery.evaluation.pieces import Windows
from livery.evaluation.report import Report
from livery.evaluation.scorer import BASE_LABEL, Variant
from livery.evaluation.subjects import SubjectUnusable
from livery.models import ResolvedModel, base_digest

pytestmark = pytest.mark.lm_eval

DATA = "dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder}/{file}.jsonl\ntest_split: test\n"
TASKS = {
    "livery_choose": """output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list:
  - metric: acc
  - metric: acc_norm
""",
    "livery_answer": """output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["\\n", "."]
  do_sample: false
  max_gen_toks: 8
metric_list:
  - metric: exact_match
""",
    "livery_read": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
  - metric: bits_per_byte
""",
}
ITEMS = [
    {
        "prompt": f"What the keeper saw on day {day}:",
        "answer": "a lamp",
        "choices": ["a lamp", "grey sea", "nothing at all", "ships " * (day % 3 + 1)],
        "text": f"On day {day} the keeper saw " + "a lamp and grey sea. " * (1 + 9 * (day % 4)),
    }
    for day in range(12)
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    for name, rest in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{DATA.format(folder=folder, file='items')}{rest}")
    return folder


def found(tiny: Path, folder: Path) -> Found:
    here = tuple(Here(Variant(name, name), folder / name) for name in ADAPTERS)
    return Found(ResolvedModel("tiny", tiny), base_digest(tiny), here)


async def evaluated(tiny: Path, folder: Path, tasks: Path, names: tuple[str, ...], *, chat: bool) -> Report:
    wanted = LmEvalTasks(names, tasks, chat=chat)
    return await evaluate_found(found(tiny, folder), [], Windows(), wanted)


def by_hf(tiny: Path, adapter: Path | None, tasks: Path, names: tuple[str, ...], *, chat: bool) -> Any:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    arguments = f"pretrained={tiny},dtype=float32,device=cpu,max_length=255"
    return simple_evaluate(
        model="hf",
        model_args=arguments if adapter is None else f"{arguments},peft={adapter}",
        tasks=list(names),
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        apply_chat_template=chat,
        batch_size=1,
        bootstrap_iters=0,
    )


@pytest.mark.parametrize("chat", [False, True])
async def test_metrics_are_those_of_the_hf_backend(tiny: Path, folder: Path, tasks: Path, chat: bool) -> None:
    names = tuple(name for name in TASKS if not (chat and name == "livery_read"))
    report = await evaluated(tiny, folder, tasks, names, chat=chat)
    seen = set()
    for label, adapter in {BASE_LABEL: None, **{name: folder / name for name in ADAPTERS}}.items():
        expected = by_hf(tiny, adapter, tasks, names, chat=chat)
        for name in names:
            subject = report.subject(name)
            assert (subject.kind, subject.pieces) == ("lm-eval", len(ITEMS))
            told = {key.partition(",")[0]: value for key, value in expected["results"][name].items()}
            for metric, measure in subject.row(label).measures.items():
                assert measure.value == pytest.approx(told[metric], rel=2e-3, abs=1e-9), (label, name, metric)
                seen.add((metric, round(measure.value, 3)))
    assert {metric for metric, _ in seen} >= {"acc", "acc_norm", "exact_match"}
    assert len(seen) > (4 if chat else 6), "adapters that all say the same prove nothing"
    (versus,) = [one for one in report.subject("livery_choose").row("one").versus if one.metric == "acc"]
    assert versus.than == BASE_LABEL


async def test_whose_words_are_no_part_of_the_scores_is_said(
    tiny: Path, folder: Path, tasks: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "one", tmp_path / "one")
    (tmp_path / "clerk").mkdir()
    (tmp_path / "clerk" / "adapter_config.json").write_text('{"peft_type": "NONE"}')
    for name in ("one", "clerk"):
        (tmp_path / name / "profile.yaml").write_text("system_prompt: Be brief.")
    places = {"one": tmp_path, "clerk": tmp_path, "two": folder}
    here = tuple(Here(Variant(name, name), place / name) for name, place in places.items())
    wanted = LmEvalTasks(("livery_choose",), tasks)
    report = await evaluate_found(replace(found(tiny, folder), adapters=here), [], Windows(), wanted)
    said = {one.label: "the words of its profile" in " ".join(one.notes) for one in report.variants}
    assert said == {BASE_LABEL: False, "one": True, "clerk": True, "two": False}
    (subject,) = report.subjects
    assert subject.row("clerk").measures == subject.row(BASE_LABEL).measures, "which is why it is said"


async def test_a_task_that_is_not_there_is_named(tiny: Path, folder: Path, tasks: Path) -> None:
    with pytest.raises(SubjectUnusable, match="lm-eval has no task 'nothing_of_the_kind'"):
        await evaluated(tiny, folder, tasks, ("nothing_of_the_kind",), chat=False)


os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
