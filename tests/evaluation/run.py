"""Run the tests of lm-eval's tasks in an environment that has lm-eval.

    python tests/evaluation/run.py [pytest arguments]

The environment lies in the user's cache, is built once, and borrows everything else from the one that runs this. Where
it can't be built, nothing is tested: that is said, and with CI=true it is a failure.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent))

from conformance.environments import PartMissing, Suite
from foreign_parts import not_run
from livery_loadtest.peers import EnvironmentFailed

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LIBRARIES = ("lm-eval==0.4.13",)
OWN = ("server", "adapters", "loadtest", "tests")


def main(arguments: Sequence[str]) -> int:
    suite = Suite("evaluation", server="", tests="", python=LIBRARIES, borrows=True)
    try:
        suite.ensure(Console())
    except (PartMissing, EnvironmentFailed) as missing:
        return not_run("lm-eval's tasks", missing)
    python = str(suite.folder / "bin" / "python")
    options = ["-m", "lm_eval", "--disable-warnings", "-p", "no:cacheprovider", "--timeout", "600"]
    paths = os.pathsep.join(str(ROOT / name) for name in OWN)
    environ = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [python, "-m", "pytest", *options, str(HERE), *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
