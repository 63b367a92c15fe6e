"""The page's table of the examples' runs is the kept file's."""

from __future__ import annotations

import copy
import json

import pytest

from livery.training.run_file import read_run
from training.table import ASKED, EXAMPLES, PAGE, RESULT, RUNS, SCHEMA, row_of, table, written


def test_the_page_says_what_the_kept_runs_came_to() -> None:
    found = json.loads(RESULT.read_text())
    page = PAGE.read_text()
    assert written(page, found) == page, "python tests/training/table.py --write"
    assert found["schema"] == SCHEMA
    assert [row["run"] for row in found["runs"]] == list(RUNS)
    other = copy.deepcopy(found)
    other["runs"][0]["evaluation"]["after"]["loss"] += 0.01
    assert written(page, other) != page


def test_the_kept_runs_are_those_of_the_examples() -> None:
    """A changed example wants a new run."""
    for row in json.loads(RESULT.read_text())["runs"]:
        run = read_run(EXAMPLES / f"{row['run']}.yaml")
        assert (row["kind"], row["steps"]) == (run.kind, run.steps)
        assert (row["adapter"], row["quantization"]) == (
            json.loads(json.dumps(run.to_json()["adapter"])),
            run.quantization,
        )


def test_a_row_says_what_was_trained_and_what_it_came_to() -> None:
    found = json.loads(RESULT.read_text())
    rows = {row["run"]: row_of(row) for row in found["runs"]}
    assert [rows[name].split(" | ")[0] for name in RUNS] == [
        "| `sft.yaml`, LoRA",
        "| `qlora.yaml`, LoRA over nf4",
        "| `dpo.yaml`, rsLoRA",
        "| `cpt.yaml`, DoRA",
        "| `raft.yaml`, LoRA",
    ]
    row = copy.deepcopy(next(row for row in found["runs"] if row["run"] == "dpo"))
    row |= {"steps": 7, "seconds": 8.6, "examples": 10}
    row["evaluation"] |= {
        "examples": 5,
        "before": {"loss": 0.6931, "preferred": 0.2, "margin": 0.0},
        "after": {"loss": 0.125, "preferred": 0.8, "margin": 1.5},
    }
    assert row_of(row).endswith("| 7 steps in 9 s | 5 of 15 | loss 0.69, 0.12; 20%, 80% of pairs; margin 1.50 |")
    found["runs"][0]["evaluation"]["after"]["loss"] = found["runs"][0]["evaluation"]["peft"]["after"]["loss"] + 0.5
    assert "at most 0.5 apart" in table(found)
    assert found["answers"][ASKED] in table(found)


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="has no <!-- training -->"):
        written("# nothing", {})
