"""Which forms of quantised bases run on this machine: bytes, speed beside full precision, and agreement with PEFT.

    python tests/quantization/run.py table.py [--out FILE] [--rounds N] [--only NAME]

The demo base in each form, in this process, in turn with the same base in fp32, some decoding steps each, so that a
busy machine slows both; ratios are medians over rounds, with the least and the most. Agreement is with transformers and
PEFT over the same quantised base, for one LoRA and one DoRA adapter: max |Δ| / max |logit|. A form that holds this base
in the very bytes of one before it isn't timed again: noise would be all that sets them apart. GGUF files are the demo
base's own, and its numbers written anew in Q8_0, and in Q6_K where blocks of 256 fit (gguf_files.py).
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from checkpoints import compressed, quantized_base
from gguf_files import GGUF
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine.oracle import ref
from livery import __version__
from livery.engine.base import EngineConfig, ModelRefused
from livery.engine.plan import SampleSpec, SequenceSlice
from livery.engine.quantization import METHODS, SCHEMES, checkpoint_method
from livery.engine.runner import ModelRunner
from livery.models import DEMO_MODEL, gguf_file, resolve_model
from livery_loadtest.origin import Origin, write_json

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "lora": LoraConfig(r=8, target_modules=LINEAR),
    "dora": LoraConfig(r=8, use_dora=True, target_modules=LINEAR),
}
TEXT = "The harbour lay still that morning, and nobody on the quay had seen the boat come in."
ROWS = (1, 16)
FEWEST, TURN_S = 3, 0.4  # steps of a turn, and seconds that it lasts at least
GREEDY = SampleSpec(temperature=0.0, top_p=1.0, top_k=0, min_p=0.0, draw=0.0)
NATIVE = ("fp32", "bf16", "int8", "int4")  # of --weights
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "torchao", "compressed-tensors")


@dataclass
class Row:
    """One form. `speed` is tokens/s over those of fp32 by rows in a step: (median, least, most)."""

    name: str
    runs: bool
    why: str = ""
    weight_bytes: int = 0
    bytes_ratio: float = 0.0
    speed: dict[int, tuple[float, float, float]] | None = None
    parity: dict[str, float] | None = None
    seconds_to_load: float = 0.0
    same_as: str = ""  # a form before it, with the same layouts and bytes
    tried: bool = True


def load(base: Path, **asked: Any) -> ModelRunner:
    config = EngineConfig(str(base), kv_memory_bytes=1 << 26, adapter_memory_bytes=1 << 26, max_model_len=256, **asked)
    return ModelRunner(config, lambda _: None)


def step(runner: ModelRunner, rows: int) -> float:
    """Seconds of a decoding step over contexts of 33 tokens: the median of several, of FEWEST at least."""
    blocks = [tuple(range(i * 3, i * 3 + 3)) for i in range(rows)]
    slices = [SequenceSlice(str(i), (70 + i,), 32, table, None, (GREEDY,)) for i, table in enumerate(blocks)]
    taken: list[float] = []
    while len(taken) < FEWEST or sum(taken) < TURN_S:
        begun = time.perf_counter()
        runner.forward(slices)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def ratios(plain: ModelRunner, other: ModelRunner, rounds: int) -> dict[int, tuple[float, float, float]]:
    found = {}
    for rows in ROWS:
        step(plain, rows), step(other, rows)
        seen = []
        for index in range(rounds):
            pair = (plain, other) if index % 2 else (other, plain)
            taken = {id(runner): step(runner, rows) for runner in pair}
            seen.append(taken[id(plain)] / taken[id(other)])
        found[rows] = (statistics.median(seen), min(seen), max(seen))
    return found


def logits(runner: ModelRunner, ids: list[int], adapter: Path | None) -> Tensor:
    """After each of the ids, from steps of a few: [ids, vocabulary]."""
    digest = None
    if adapter is not None:
        image = runner.read_adapter(ref(adapter))
        runner.install(image.copied_to(runner.device))
        digest = ref(adapter).digest
    table, found = tuple(range(-(-len(ids) // 16))), []
    for start in range(0, len(ids), 7):
        part = tuple(ids[start : start + 7])
        found.append(runner.forward([SequenceSlice("one", part, start, table, digest, (GREEDY,) * len(part))]).clone())
    return torch.cat(found)


def parity(runner: ModelRunner, model: Any, adapters: dict[str, Path], ids: list[int]) -> dict[str, float]:
    found = {}
    for name, adapter in adapters.items():
        judge = PeftModel.from_pretrained(model, adapter).eval()
        with torch.no_grad():
            expected = judge(torch.tensor([ids]), use_cache=False).logits[0]
        model = judge.unload()
        found[name] = float((logits(runner, ids, adapter) - expected).abs().max() / expected.abs().max())
    return found


def save_adapters(base: Path, folder: Path) -> dict[str, Path]:
    torch.manual_seed(1)
    for name, config in ADAPTERS.items():
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
        for path, weight in model.named_parameters():
            if "lora_B" in path:
                torch.nn.init.normal_(weight, std=0.02)
        model.save_pretrained(folder / name)
    return {name: folder / name for name in ADAPTERS}


def forms(base: Path, scratch: Path) -> dict[str, tuple[Path, dict[str, str]]]:
    """Name -> directory and what the engine is asked for."""
    found: dict[str, tuple[Path, dict[str, str]]] = {f"--weights {name}": (base, {"weights": name}) for name in NATIVE}
    found |= {f"--quantization {name}": (base, {"quantization": name}) for name in SCHEMES}
    found |= {f"GGUF file: {name}": (scratch / f"{name}.gguf", {}) for name in GGUF}
    others = [method for method in METHODS if method not in ("compressed-tensors", "bitsandbytes", "torchao")]
    for method in ("compressed-tensors", *others):
        found[f"checkpoint: {METHODS[method].name}"] = (scratch / method.replace(" ", "-"), {})
    return found


def marked(base: Path, target: Path, method: str) -> None:
    """A checkpoint that only says it is in this form: enough to be told whether it would run."""
    config = json.loads((base / "config.json").read_text())
    told = {"quant_method": method} if " " not in method else {"quant_method": "bitsandbytes", "load_in_8bit": True}
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": told}))


def judge_of(path: Path, asked: dict[str, str]) -> Any:
    if "quantization" in asked:
        return quantized_base(path, asked["quantization"])
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    model(torch.tensor([[1]]))  # before which compressed-tensors' modules have no weight that PEFT would find
    return model


def measure(
    name: str,
    path: Path,
    asked: dict[str, str],
    plain: ModelRunner,
    adapters: dict[str, Path],
    rounds: int,
    before: Sequence[Row],
) -> Row:
    begun = time.perf_counter()
    tried = is_tried(path, asked)
    try:
        runner = load(path, **asked)
    except ModelRefused as refused:
        return Row(name, False, str(refused), tried=tried)
    row = Row(name, True, runner.info.weights, runner.info.weight_bytes, seconds_to_load=time.perf_counter() - begun)
    row.tried, row.bytes_ratio = tried, row.weight_bytes / plain.info.weight_bytes
    alike = [one for one in before if (one.why, one.weight_bytes) == (row.why, row.weight_bytes) and not one.same_as]
    if alike and same_numbers(name, path, asked):
        row.same_as = alike[0].name
        return row
    row.speed = ratios(plain, runner, rounds)
    if asked.get("weights", "fp32") == "fp32":  # --weights rounds in the engine: nobody else has those numbers
        ids = AutoTokenizer.from_pretrained(resolve_model(DEMO_MODEL).path)(TEXT)["input_ids"]
        row.parity = parity(runner, judge_of(path, asked), adapters, ids)
    return row


def is_tried(path: Path, asked: dict[str, str]) -> bool:
    """Whether the project's tests compute a base in this form."""
    if "quantization" in asked:
        return SCHEMES[asked["quantization"]].tried
    method = checkpoint_method(path)
    return not method or (method in METHODS and METHODS[method].tried)


def same_numbers(name: str, path: Path, asked: dict[str, str]) -> bool:
    """Whether it is the demo base's own numbers: of others equal bytes say nothing."""
    return name == "GGUF file: Q4_1" or (path == resolve_model(DEMO_MODEL).path and "weights" in asked)


def cells(row: Row) -> list[str]:
    name = row.name if row.tried else f"{row.name} (untested)"
    if not row.runs:
        return [name, "no", row.why, "", "", "", ""]
    size = f"{row.weight_bytes / 2**20:.0f} MiB ({row.bytes_ratio:.2f})"
    if row.same_as:
        return [name, "yes", row.why, size, *[f"as {row.same_as}"] * len(ROWS), ""]
    assert row.speed is not None
    speeds = [f"{median:.2f} ({least:.2f} to {most:.2f})" for median, least, most in row.speed.values()]
    agreed = ", ".join(f"{name} {error:.0e}" for name, error in (row.parity or {}).items())
    return [name, "yes", row.why, size, *speeds, agreed]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write JSON to this file too")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="forms whose name has this in it")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    base, origin = resolve_model(DEMO_MODEL).path, Origin.here(f"livery {__version__}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        adapters = save_adapters(base, folder)
        plain = load(base, weights="fp32")
        for name, (path, asked) in forms(base, folder).items():
            if args.only and args.only not in name:
                continue
            converted: Path | None = None
            if path != base:
                if path.suffix == ".gguf":
                    GGUF[path.stem](gguf_file(DEMO_MODEL), path)
                    path = converted = resolve_model(str(path)).path
                elif path.name == "compressed-tensors":
                    compressed(base, path)
                else:
                    marked(base, path, path.name.replace("bitsandbytes-int8", "bitsandbytes int8"))
            rows.append(measure(name, path, asked, plain, adapters, args.rounds, rows))
            print(" | ".join(cells(rows[-1])), flush=True)
            if args.out:  # after each form: one that fails leaves what was measured
                write_json(report(rows, plain.info.weight_bytes, origin), args.out)
            if converted:  # the cache is for files that are used again
                shutil.rmtree(converted)
            gc.collect()
    heads = ["form", "runs here", "how, or why not", "base's bytes (of fp32)"]
    heads += [f"tokens/s of fp32's, {count} row{'s' if count > 1 else ''}" for count in ROWS]
    print("\n| " + " | ".join([*heads, "max error beside PEFT"]) + " |\n" + "|---" * 7 + "|")
    for row in rows:
        print("| " + " | ".join(cells(row)) + " |")
    return 0


def report(rows: list[Row], full: int, origin: Origin) -> dict[str, object]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "schema": "livery-quantization/2",
        "origin": origin,
        "versions": versions,
        "threads": torch.get_num_threads(),
        "model": DEMO_MODEL,
        "fp32_bytes": full,
        "rows": [asdict(row) for row in rows],
    }


if __name__ == "__main__":
    sys.exit(main())
