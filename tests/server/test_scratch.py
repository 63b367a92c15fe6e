"""Temporary directories: removed with their process, or by the next one after it was killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from livery.scratch import Scratch

MAKES_ONE = """
import sys
from pathlib import Path
from livery.scratch import Scratch
scratch = Scratch("livery-test-", Path(sys.argv[1]))
(scratch.path / "file").write_text("left")
print(scratch.path, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    (tmp_path / "somebody-elses").mkdir()
    command = [sys.executable, "-c", MAKES_ONE, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        left = Path(maker.stdout.readline().strip())
        first = Scratch("livery-test-", tmp_path)
        assert (left / "file").read_text() == "left" and first.path.is_dir()
        maker.kill()
    second = Scratch("livery-test-", tmp_path)
    assert not left.exists() and first.path.is_dir()
    first.remove()
    second.remove()
    assert [each.name for each in tmp_path.iterdir()] == ["somebody-elses"]
