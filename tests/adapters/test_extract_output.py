"""What an interrupted extraction leaves: nothing under the name, and finished modules that are gone on with."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapters.tuned_made import FULL, edit, extracted, pair
from livery_adapters.making.extract import Aim
from livery_adapters.making.extract_output import JOURNAL_NAME, Piece, Unfinished
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tensor_file import FILE_NAMES, WEIGHTS_NAME

STOPPED_AT = 10

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


class Stopped(Exception):
    pass


def stop(done: int, total: int) -> None:
    if done == STOPPED_AT:
        raise Stopped


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    return pair(tmp_path)


@pytest.fixture
def begun(models: tuple[Path, Path], tmp_path: Path) -> Path:
    """The folder of an extraction that was interrupted."""
    with pytest.raises(Stopped):
        extracted(*models, tmp_path / "out", progress=stop)
    assert not (tmp_path / "out").exists()
    return tmp_path / ".out.extracting"


def ends(models: tuple[Path, Path], tmp_path: Path, resumed: int) -> None:
    """The extraction goes on with so many modules, and gives what one without an interruption gives."""
    report = extracted(*models, tmp_path / "out")
    assert report.resumed == resumed
    extracted(*models, tmp_path / "fresh")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILE_NAMES)
    for name in FILE_NAMES:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_finished_modules_are_kept(models: tuple[Path, Path], begun: Path, tmp_path: Path) -> None:
    ends(models, tmp_path, STOPPED_AT)


def cut_journal(folder: Path) -> None:
    """The process died while it wrote the last line."""
    journal = folder / JOURNAL_NAME
    journal.write_bytes(journal.read_bytes()[:-20])


def cut_weights(folder: Path) -> None:
    """Of the last modules the bytes never came to the disk."""
    data = (folder / WEIGHTS_NAME).read_bytes()
    (folder / WEIGHTS_NAME).write_bytes(data[:-20])


def turned_bit(folder: Path) -> None:
    with (folder / WEIGHTS_NAME).open("r+b") as stream:
        stream.seek(-20, 2)
        byte = stream.read(1)[0]
        stream.seek(-20, 2)
        stream.write(bytes([byte ^ 1]))


def more_weights(folder: Path) -> None:
    """A module that was being written when the process died."""
    with (folder / WEIGHTS_NAME).open("ab") as stream:
        stream.write(b"x" * 1000)


def no_journal(folder: Path) -> None:
    (folder / JOURNAL_NAME).unlink()


@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (cut_journal, STOPPED_AT - 1),
        (cut_weights, STOPPED_AT - 1),
        (turned_bit, STOPPED_AT - 1),
        (more_weights, STOPPED_AT),
        (no_journal, 0),
    ],
)
def test_only_what_is_whole_is_gone_on_with(
    damage: Callable[[Path], None], kept: int, models: tuple[Path, Path], begun: Path, tmp_path: Path
) -> None:
    damage(begun)
    ends(models, tmp_path, kept)


def test_modules_of_a_file_that_changed_are_made_anew(models: tuple[Path, Path], begun: Path, tmp_path: Path) -> None:
    norm = load_file(models[1] / "model.safetensors")["model.norm.weight"]
    edit(models[1] / "model.safetensors", **{"model.norm.weight": norm + 1})
    ends(models, tmp_path, 0)


def test_work_with_other_settings_is_not_gone_on_with(models: tuple[Path, Path], begun: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterRefused, match="other settings or other models") as caught:
        extracted(*models, tmp_path / "out", Aim(rank=2))
    assert caught.value.code == "output_unfinished"
    assert str(begun) in caught.value.message
    ends(models, tmp_path, STOPPED_AT)  # the refusal left it as it was
    with pytest.raises(Stopped):
        extracted(*models, tmp_path / "again", progress=stop)
    shutil.rmtree(tmp_path / ".again.extracting")
    assert extracted(*models, tmp_path / "again", Aim(rank=2)).resumed == 0


def test_two_at_once(models: tuple[Path, Path], tmp_path: Path) -> None:
    def other(done: int, total: int) -> None:
        if done == STOPPED_AT:
            with pytest.raises(AdapterRefused, match="another process is writing"):
                extracted(*models, tmp_path / "out")

    extracted(*models, tmp_path / "out", FULL, progress=other)
    assert (tmp_path / "out").is_dir()


@contextmanager
def files_of_at_most(nbytes: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_no_room_midway(models: tuple[Path, Path], tmp_path: Path) -> None:
    whole = extracted(*models, tmp_path / "whole").nbytes
    with files_of_at_most(whole // 2), pytest.raises(AdapterRefused, match="make room") as caught:
        extracted(*models, tmp_path / "out")
    assert caught.value.code == "storage_full"
    assert not (tmp_path / "out").exists()
    assert extracted(*models, tmp_path / "out").resumed > 2
    assert (tmp_path / "out" / WEIGHTS_NAME).read_bytes() == (tmp_path / "whole" / WEIGHTS_NAME).read_bytes()


SHORT_OF_MEMORY = """
import resource, sys
from pathlib import Path
from adapters.tuned_made import extracted, shapes
from livery_adapters.refusal import AdapterRefused

base, tuned, out = map(Path, sys.argv[1:])
shapes(base)
def limited(done, total):
    if done == 0:
        taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + (24 << 20),) * 2)
try:
    extracted(base, tuned, out, progress=limited)
except AdapterRefused as refused:
    print(refused.code, refused.message)
"""


def wide_pair(folder: Path, layers: int, hidden: int, inner: int) -> list[str]:
    """A base and a fine-tune of all but its experts: linear modules of hidden x inner, and a last layer of experts."""
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    config = Qwen3MoeConfig(
        vocab_size=97,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers + 1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        mlp_only_layers=list(range(layers)),
        num_experts=8,
        moe_intermediate_size=inner // 16,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if f"layers.{layers}.mlp." not in name:
                weight += 0.01 * torch.randn_like(weight)
    model.save_pretrained(folder / "tuned")
    return [str(folder / name) for name in ("base", "tuned", "out")]


def run_apart(script: str, arguments: list[str], **environ: str) -> str:
    """What a script prints in a process of its own."""
    env = {**os.environ, **environ}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(
        command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=120, env=env
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


only_linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is as Linux tells it")


@only_linux
def test_no_memory_midway(tmp_path: Path) -> None:
    told = run_apart(SHORT_OF_MEMORY, wide_pair(tmp_path, 1, 256, 16384))
    assert told.startswith("out_of_memory not enough memory for model.layers.0.mlp."), told
    report = extracted(tmp_path / "base", tmp_path / "tuned", tmp_path / "out")
    assert report.resumed > 0


PEAK = """
import resource, sys
from livery.cli import main

def command(base, tuned, out, *more):
    sys.argv = ["livery", "adapters", "extract", "--base", base, "--tuned", tuned, "--out", out, "--json", *more]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, ended.code
small, large = sys.argv[1:4], sys.argv[4:]
command(*small)  # what libraries set up once
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
resident = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
ballast = b"x" * max(0, peak() - resident)  # what imports needed for a moment: without it the peak would hide in that
before = peak()
command(*large, "--error", "0.9")
print()
print(peak() - before)
"""


@only_linux
def test_it_needs_memory_for_two_layers_however_many_there_are(tmp_path: Path) -> None:
    """The command does: six fp32 copies of the largest linear module, and some MB. glibc gives back what is freed."""
    small, large = (
        wide_pair(tmp_path / name, *sizes) for name, *sizes in (("small", 1, 32, 64), ("large", 6, 128, 12288))
    )
    needed = int(run_apart(PEAK, [*small, *large], MALLOC_MMAP_THRESHOLD_="65536").splitlines()[-1])
    bound = 6 * (4 * 128 * 12288) + (10 << 20)
    assert 0 < needed < bound
    models = sum(file.stat().st_size for file in (tmp_path / "large").glob("[bt]*/*.safetensors"))
    assert models > 3 * bound, "models that fit would pass"


def test_what_was_written_reads_back(tmp_path: Path) -> None:
    tensors = {
        "one": torch.randn(5, 3),
        "two": torch.randn(4).bfloat16(),
        "three": torch.tensor(2.5, dtype=torch.float16),
        "none": torch.empty(0, 4),
    }
    with Unfinished(tmp_path / "out", {}, list(tensors)) as work:
        work.add("m", [], (Piece.of(name, tensor) for name, tensor in tensors.items()), {"n": 1})
        work.finish({"r": 1}, {"made": "here"}, {"notes.txt": b"hello"})
    found = load_file(tmp_path / "out" / WEIGHTS_NAME)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert (tmp_path / "out" / "notes.txt").read_bytes() == b"hello"
