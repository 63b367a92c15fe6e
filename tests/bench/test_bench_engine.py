"""A whole run of `livery bench engine` on a tiny model: every row, the document, the picture; no speed is judged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from xml.etree import ElementTree

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM, LlamaConfig
from typer.testing import CliRunner

from livery.bench import machine
from livery.bench.alternate import alternate
from livery.bench.bars import Row
from livery.bench.plot import draw
from livery.bench.report import build_report
from livery.bench.sizes import Sizes
from livery.bench.suite import Findings, Group, Suite
from livery.bench.values import chosen, merged
from livery.bench.workbench import BenchFailed, Workbench, reference
from livery.commands.bench_engine import engine
from livery.engine.base import AdapterRef, EngineConfig
from livery_loadtest.machine import describe_machine
from livery_loadtest.origin import Origin
from livery_loadtest.random_adapters import write_random_adapters

pytestmark = pytest.mark.bench

TINY = Sizes(
    rounds=2,
    turns=1,
    rank=4,
    context=12,
    decode_rows=(1, 3),
    mixed_rows=(3,),
    ranks=(2, 4),
    ranked_rows=3,
    prompts=(20, 40),
    check_tokens=6,
    check_prompt=5,
    cold_prompt=20,
    cold_requests=4,
    fitting=2,
    streams=2,
    stream_tokens=12,
    loads_per_second=500.0,
    hot_factor=3,
    hot_requests=6,
    hot_streams=2,
    known=10,
    waves=2,
    wave_rows=2,
    wave_tokens=3,
    prefill_rounds=2,
    option_rounds=2,
    serving_rounds=2,
    option_rows=(1, 2),
    passage=6,
    copied=8,
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EngineConfig:
    torch.manual_seed(3)
    shape = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=97,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    model = AutoModelForCausalLM.from_config(shape)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return EngineConfig(str(folder), base_digest="0" * 64, kv_memory_bytes=1 << 22, max_batch_tokens=16, threads=1)


@pytest.fixture(scope="module", autouse=True)
def small_peaks() -> Iterator[None]:
    """What the machine can do at best is measured a dozen times, and no speed is judged here."""
    with pytest.MonkeyPatch.context() as sizes:
        for name, value in {"READ_BYTES": 1 << 22, "READS": 1, "PRODUCTS": 1, "SQUARE": 128}.items():
            sizes.setattr(machine, name, value)
        yield


@pytest.fixture(scope="module")
def findings(config: EngineConfig, tmp_path_factory: pytest.TempPathFactory) -> Findings:
    shown: list[str] = []
    suite = Suite(config, tmp_path_factory.mktemp("adapters"), TINY, lambda _: None, lambda row: shown.append(row.name))
    found = suite.run(frozenset(Group), with_profile=True)
    assert shown == [row.name for row in found.rows]
    return found


def test_every_row_of_the_table_is_there(findings: Findings) -> None:
    names = [row.name for row in findings.rows]
    assert len(set(names)) == len(names)
    for part in (
        "greedy tokens in the mix equal to alone",
        "greedy tokens equal to merged weights",
        "base, decode, 1 rows: floor / time",
        "one adapter / base, decode, 3 rows: reached / physical",
        "3 distinct adapters, decode, 3 rows: reached / physical",
        "ranks {2, 4} mixed, 3 rows: time / by bytes",
        "prefill with adapter / base, 20 tokens",
        "prefill with adapter / base, 40 tokens",
        "base-only traffic, 3 adapters in memory / none, 3 rows",
        "cold / warm TTFT, 20 tokens, from the store",
        "cold / warm TTFT, 20 tokens, from host memory",
        "p99 between tokens with 500 cold loads/s / without",
        "TTFT with 3x more hot adapters than fit / all fit",
        "throughput with 10 adapters known / 1",
        "speculation on / off, copying, 2 rows",
        "TTFT, 20 tokens, asked before / new",
        "--deterministic / default, decode, 2 rows",
        "--weights int8 / default, decode, 2 rows",
    ):
        assert any(name.startswith(part) for name in names), part


def test_answers_are_right_while_they_are_measured(findings: Findings) -> None:
    values = {row.name: row.value.median for row in findings.rows if row.name.startswith("greedy")}
    assert set(values.values()) == {1.0}
    drafted = {row.name: row.facts for row in findings.rows if row.name.startswith("speculation")}
    assert [facts["equal"] for facts in drafted.values()] == [1, 2]


def test_the_document_and_the_picture_hold_every_row(findings: Findings, tmp_path: Path) -> None:
    origin = Origin("livery bench engine", "2026-01-01T00:00:00+00:00", "0", describe_machine())
    build_report(findings, TINY, origin, {"kernels": "native"}).write(tmp_path / "new" / "out.json")
    document = json.loads((tmp_path / "new" / "out.json").read_text())
    assert document["schema"] == "livery-bench-engine/1"
    assert {"torch", "transformers"} <= document["versions"].keys()
    assert document["engine"]["device"] == "cpu"
    assert document["sizes"]["decode_rows"] == [1, 3]
    peak = {kind: median(peak[kind] for peak in document["peaks"]) for kind in ("bandwidth", "flops")}
    assert len(document["peaks"]) > 4
    for row, written in zip(findings.rows, document["rows"], strict=True):
        assert written["name"] == row.name
        assert written["value"]["low"] <= written["value"]["median"] <= written["value"]["high"]
        assert written["verdict"] in ("aim", "pass", "fail", "shown")
    one = next(row for row in document["rows"] if row["name"].startswith("3 distinct"))
    facts = one["facts"]
    assert facts["mixed"]["efficiency"] == pytest.approx(facts["mixed"]["floor"] / facts["mixed"]["time"])
    floor = max(facts["mixed"]["bytes"] / peak["bandwidth"], facts["mixed"]["operations"] / peak["flops"])
    assert facts["mixed"]["floor"] == pytest.approx(floor)
    assert one["value"]["median"] == pytest.approx(facts["speed"]["median"] / facts["physical"])
    assert facts["physical"] == pytest.approx(facts["base"]["bytes"] / facts["mixed"]["bytes"])
    floored = facts["base"]["floor"] / facts["mixed"]["floor"]
    assert one["with_operations"]["median"] == pytest.approx(facts["speed"]["median"] / floored)
    assert document["complete"]
    assert document["failures"] == {}
    parts = document["part_seconds"]
    assert 0 < parts["decode steps"] < parts["an engine that holds all adapters"] < document["seconds"]
    picture = ElementTree.fromstring(draw(findings.rows, "tiny & small"))
    texts = {element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {row.name for row in findings.rows if row.bar} <= texts


def test_what_fails_takes_nothing_with_it(config: EngineConfig, tmp_path: Path) -> None:
    longer = replace(TINY, check_prompt=10_000)  # than the model takes
    suite = Suite(config, tmp_path, longer, lambda _: None, lambda _: None)
    found = suite.run(frozenset({Group.VALUES, Group.PREFILL}), with_profile=False)
    assert list(found.failures) == ["greedy tokens"]
    assert "10000" in found.failures["greedy tokens"]
    assert [row.name.split(",")[0] for row in found.rows] == ["prefill with adapter / base"] * 2
    assert not found.complete


def test_what_is_interrupted_keeps_its_rows(config: EngineConfig, tmp_path: Path) -> None:
    def show(row: Row) -> None:
        if row.name.startswith("prefill with adapter / base, 40"):
            raise KeyboardInterrupt

    suite = Suite(config, tmp_path, TINY, lambda _: None, show)
    with pytest.raises(KeyboardInterrupt):
        suite.run(frozenset({Group.PREFILL, Group.SERVING}), with_profile=False)
    assert len(suite.findings.rows) == 2
    assert not suite.findings.complete
    assert suite.findings.seconds > 0


def test_a_file_that_cannot_be_written_is_refused_before_measuring(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    app = typer.Typer()
    app.command()(engine)
    plain = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "300"}
    for option in ("--out", "--plot"):
        told = CliRunner().invoke(app, [option, str(tmp_path / "file" / "new")], env=plain)
        assert told.exit_code == 2
        assert option in told.output
    assert (tmp_path / "file").read_text() == "kept"


def test_profiles_name_the_kernels(findings: Findings) -> None:
    for forward in ("default", "one by one"):
        steps = [(one.rows, one.adapters) for one in findings.profiles if one.forward == forward]
        assert steps == [(1, 0), (1, 1), (16, 0), (16, 3)]
    for one in findings.profiles:
        assert len(one.costs) == 3
        assert all(0 < cost.share < 1 for cost in one.costs)
        assert [cost.seconds for cost in one.costs] == sorted((cost.seconds for cost in one.costs), reverse=True)


def test_steps_that_are_timed_are_steps_of_the_plan_asked_for(config: EngineConfig, tmp_path: Path) -> None:
    adapters = [reference(path) for path in write_random_adapters(Path(config.model_path), tmp_path, 2, 4).values()]
    bench = Workbench(config, lambda _: None)
    try:
        bench.ready(adapters)
        assert set(bench.core.stats().resident_adapters) == {adapter.digest for adapter in adapters}
        seen = []
        execute = bench.runner.execute
        bench.runner.execute = lambda plan: seen.append(plan) or execute(plan)  # type: ignore[method-assign, func-returns-value]
        bench.decoder(3, 12, [*adapters, None])()
        assert [part.adapter for part in seen[0].slices] == [adapters[0].digest, adapters[1].digest, None]
        assert all(part.start == 12 and len(part.token_ids) == 1 and part.samples for part in seen[0].slices)
        bench.reader(40, adapters[0])()
        assert [plan.num_tokens for plan in seen[1:]] == [16, 16, 8]
        assert [bool(plan.slices[0].samples) for plan in seen[1:]] == [False, False, True]
        with pytest.raises(BenchFailed, match="KV blocks"):
            bench.decoder(10_000, 12, [None])
        bench.drop(adapters)
        assert bench.core.stats().resident_adapters == ()
        with pytest.raises(BenchFailed, match="gone"):
            bench.run([(bench.tokens(3), 1, AdapterRef.of("gone" * 16, str(tmp_path / "nowhere")))])
    finally:
        bench.close()


def test_merged_weights_are_those_of_the_adapter_and_only_for_a_while(config: EngineConfig, tmp_path: Path) -> None:
    from peft import PeftModel

    (path,) = write_random_adapters(Path(config.model_path), tmp_path, 1, 4).values()
    model = AutoModelForCausalLM.from_pretrained(config.model_path)
    prompt = [5, 9, 11, 3]
    with torch.no_grad():
        plain = model(torch.tensor([prompt])).logits
        with merged(model, reference(path)):
            changed = model(torch.tensor([prompt])).logits
            answer = model.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False, eos_token_id=None)
            tokens = answer[0, len(prompt) :].tolist()
            assert chosen(model, prompt, tokens) == tokens
            other = [*tokens[:2], (tokens[2] + 1) % 97, *tokens[3:]]
            assert chosen(model, prompt, other)[:3] == tokens[:3]  # at the place that differs it would choose another
        assert torch.equal(model(torch.tensor([prompt])).logits, plain)
        expected = PeftModel.from_pretrained(model, path)(torch.tensor([prompt])).logits
    assert (changed - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (changed - plain).abs().max() > 1e-2 * plain.abs().max()


def test_variants_take_turns() -> None:
    order: list[str] = []
    times = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, turns=2)
    assert "".join(order) == "ab" + "abba" * 2
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2}
