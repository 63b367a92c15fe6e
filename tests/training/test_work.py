"""What outlives a run's process, the picture of its loss, and the sums that say what it was worth."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from livery.training.curve import averaged, draw
from livery.training.measure import measure
from livery.training.run_file import parse_run
from livery.training.tokens import IGNORED, Learnt, Pair
from livery.training.work import Work, WorkInvalid, finished_report

SETTINGS = {"run": {"seed": 0}, "data": ["ab"]}


def checkpoint(work: Work, step: int) -> Path:
    folder = work.checkpoints / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"w" * 1000)
    (folder / "state").write_text(str(step))
    return folder


def test_the_newest_whole_checkpoint_is_gone_on_from(tmp_path: Path) -> None:
    with Work(tmp_path / "out", SETTINGS) as work:
        assert work.checkpoint() is None
        for step in (5, 10, 15, 20):
            work.seal(checkpoint(work, step), {"step": step})
        cut, changed = (work.checkpoints / f"checkpoint-{step}" for step in (20, 15))
        (cut / "weights").write_bytes(b"w" * 999)  # as a machine leaves it that was switched off
        (changed / "state").write_text("51")
        checkpoint(work, 25)  # unsealed, as a killed process leaves it
    with Work(tmp_path / "out", SETTINGS) as work:
        found = work.checkpoint()
        assert found == (work.checkpoints / "checkpoint-10", {"step": 10})
        assert sorted(path.name for path in work.checkpoints.iterdir()) == ["checkpoint-10", "checkpoint-5"]


def test_work_that_was_begun_with_other_settings(tmp_path: Path) -> None:
    with Work(tmp_path / "out", SETTINGS) as work:
        work.seal(checkpoint(work, 5), {})
    with (
        pytest.raises(WorkInvalid, match=r"data was \['ab'\] and is \['cd'\]\); give the same ones .* or remove it"),
        Work(tmp_path / "out", {**SETTINGS, "data": ["cd"]}),
    ):
        pass
    with Work(tmp_path / "out", SETTINGS) as work:
        assert work.newest() == 5


def test_work_that_kept_nothing_is_no_hindrance_to_other_settings(tmp_path: Path) -> None:
    """As a run leaves it that was killed before its first checkpoint was whole."""
    folder = tmp_path / ".out.training"
    (folder / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    other = {**SETTINGS, "data": ["cd"]}
    with Work(tmp_path / "out", other) as work:
        assert work.checkpoint() is None
        work.seal(checkpoint(work, 5), {})
    with pytest.raises(WorkInvalid, match="with other settings"), Work(tmp_path / "out", SETTINGS):
        pass


def test_a_disk_that_is_full_from_the_beginning_is_left_as_it_was(tmp_path: Path) -> None:
    script = (
        "import resource, signal\nfrom pathlib import Path\nfrom livery.training.work import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        f"try:\n    with Work(Path({str(tmp_path / 'out')!r}), {SETTINGS}): pass\n"
        "except WorkInvalid as refused: import sys; sys.exit(str(refused))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "can't be written: File too large; nothing of the training could be kept yet: make room" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_output_is_on_the_disk_before_its_checkpoints_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{fd}")).name, work.checkpoints.exists()))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    with Work(tmp_path / "out", SETTINGS) as work:
        work.adapter.mkdir()
        (work.adapter / "weights").write_bytes(b"w" * 1000)
        work.finish({"training.json": "{}"})
    names = [name for name, _ in synced]
    assert (sorted(names[:2]), names[2:]) == (["training.json", "weights"], ["adapter", tmp_path.name])
    assert all(checkpoints for _, checkpoints in synced)


@pytest.mark.parametrize("left", ["", "{", None])
def test_settings_that_were_lost_let_no_others_go_on(left: str | None, tmp_path: Path) -> None:
    """A machine that is switched off may leave a file empty, or take it along."""
    with Work(tmp_path / "out", SETTINGS) as work:
        work.seal(checkpoint(work, 5), {"step": 5})
    file = work.folder / "settings.json"

    def lose() -> None:
        file.unlink() if left is None else file.write_text(left)

    lose()
    with Work(tmp_path / "out", SETTINGS) as work:
        assert work.checkpoint() == (work.checkpoints / "checkpoint-5", {"step": 5})
    lose()
    with Work(tmp_path / "out", {**SETTINGS, "data": ["cd"]}) as work:
        assert work.checkpoint() is None
    assert json.loads(file.read_text()) == {**SETTINGS, "data": ["cd"]}


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Work(tmp_path / "out", SETTINGS):
        script = (
            "from pathlib import Path; from livery.training.work import *\n"
            f"try:\n    with Work(Path({str(tmp_path / 'out')!r}), {SETTINGS}): print('in')\n"
            "except WorkInvalid as refused: print(refused)"
        )
        said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "another process is training" in said


def test_what_ended_before_its_first_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Work(tmp_path / "out", SETTINGS) as work:
        checkpoint(work, 5)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(WorkInvalid, match=r"there is something at .*out already"), Work(tmp_path / "out", SETTINGS):
        pass
    assert finished_report(tmp_path / "out") is None


@pytest.mark.parametrize("name", [".", "../here", "new"])
def test_an_output_may_be_named_from_where_one_stands(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    out = here / "new" if name == "new" else here
    with Work(Path(name), SETTINGS) as work:
        assert work.folder == out.parent / f".{out.name}.training"
        work.adapter.mkdir()
        work.finish({"training.json": "{}"})
    assert finished_report(out) == {}
    with pytest.raises(WorkInvalid, match=f"there is something at {out} already"), Work(out, SETTINGS):
        pass
    with pytest.raises(WorkInvalid, match="there is something at / already"), Work(Path("/"), SETTINGS):
        pass


def test_an_output_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with Work(tmp_path / "out", SETTINGS) as work:
        work.adapter.mkdir()
        (work.adapter / "adapter_config.json").write_text("{}")
        assert not work.out.exists()
        work.finish({"training.json": json.dumps({"steps": 5}), "loss.svg": "<svg/>"})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "loss.svg",
        "training.json",
    ]
    assert finished_report(tmp_path / "out") == {"steps": 5}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EFBIG, "File too large"),
        RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_and_half_written_checkpoints_go(error: Exception, tmp_path: Path) -> None:
    with Work(tmp_path / "out", SETTINGS) as work:
        work.seal(checkpoint(work, 5), {})
        half = checkpoint(work, 10)
        told = str(work.full(error))
        assert "can't be written" in told
        assert "step 5 is kept" in told
        assert "make room and give the same command again" in told
        assert not half.exists()
        assert work.full(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_a_disk_that_is_too_small_is_told_before(tmp_path: Path) -> None:
    with Work(tmp_path / "out", SETTINGS) as work:
        work.check_room(1000)
        with pytest.raises(WorkInvalid, match=r"writes about 1,000,000,000,000 MB of checkpoints to .*; make room"):
            work.check_room(10**18)


def test_the_picture_of_a_loss() -> None:
    losses = [(step, 5 / step) for step in range(1, 101)]
    picture = draw("sft on <base>", losses, [(0, 5.0), (50, 1.0), (100, 0.5)])
    root = ElementTree.fromstring(picture)
    text = " ".join(element.text or "" for element in root.iter())
    assert "sft on <base>" in text
    assert "average of 5 steps" in text
    paths = [element.get("d", "") for element in root.iter() if element.tag.endswith("path")]
    assert [path.count("L") + 1 for path in paths[1:]] == [100, 100, 3], "a point for each"
    assert len([element for element in root.iter() if element.tag.endswith("circle")]) == 3
    heights = [float(point.split()[1]) for point in paths[1].removeprefix("M").split("L")]
    assert heights == sorted(heights), "a falling loss goes down the page"
    assert averaged(losses)[-1][1] == pytest.approx(sum(5 / step for step in range(96, 101)) / 5)
    ElementTree.fromstring(draw("nothing yet", [], []))


def fixed(ids: list[int]) -> torch.Tensor:
    """Logits by which token 1 is always e times likelier than any other of four."""
    return torch.tensor([[0.0, 1.0, 0.0, 0.0]]).repeat(len(ids), 1)


def test_a_loss_counts_what_is_learnt_and_nothing_else() -> None:
    run = parse_run("kind: sft\nbase: b\ndata: d")
    total = math.log(3 + math.e)
    items = [Learnt([0, 1, 2], [IGNORED, 1, 2]), Learnt([3, 1], [3, 1]), Learnt([1, 2, 3], [IGNORED, IGNORED, 3])]
    found = measure(run, fixed, items)
    assert found.loss == pytest.approx(((total - 1) + total + (total - 1) + total) / 4)
    assert found.told()["perplexity"] == pytest.approx(math.exp(found.loss))


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_preferences_are_measured_against_the_base(loss: str) -> None:
    run = parse_run(f"kind: dpo\nbase: b\ndata: d\nloss: {loss}\nbeta: 0.5")
    items = [Pair([0], [1, 1], [2]), Pair([0], [3], [1])]
    total = math.log(3 + math.e)
    base = [(-3.0, -2.0), (-1.0, -4.0)]
    found = measure(run, fixed, items, base)
    answers = [(2 - 2 * total, -total), (-total, 1 - total)]
    assert found.answers == [pytest.approx(pair, abs=1e-6) for pair in answers]
    ratios = [(c - base_c, r - base_r) for (c, r), (base_c, base_r) in zip(answers, base, strict=True)]
    expected = {
        "sigmoid": [math.log(1 + math.exp(-0.5 * (c - r))) for c, r in ratios],
        "hinge": [max(0, 1 - 0.5 * (c - r)) for c, r in ratios],
        "ipo": [(c / n - r / m - 1.0) ** 2 for (c, r), (n, m) in zip(ratios, [(2, 1), (1, 1)], strict=True)],
    }[loss]
    assert found.loss == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert found.margin == pytest.approx(sum(0.5 * (c - r) for c, r in ratios) / 2, abs=1e-5)
    assert found.preferred == 0.5
    assert measure(run, fixed, items).margin == 0.0, "a base is its own reference"
