"""Run the tests that really train, or the script of the page's table, where TRL and what quantises a base are there.

    python tests/training/run.py [table.py … | pytest arguments]

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
LIBRARIES = ("trl==1.16.0", "datasets==5.2.0", "accelerate>=1.10.1", "bitsandbytes==0.50.2", "torchao==0.18.0")
OWN = ("server", "adapters", "loadtest", "tests")


def main(arguments: Sequence[str]) -> int:
    suite = Suite("training", server="", tests="", python=LIBRARIES, borrows=True)
    try:
        suite.ensure(Console())
    except (PartMissing, EnvironmentFailed) as missing:
        return not_run("training", missing)
    python = str(suite.folder / "bin" / "python")
    options = ["-m", "train", "--disable-warnings", "-p", "no:cacheprovider", "--timeout", "600"]
    paths = os.pathsep.join(str(ROOT / name) for name in OWN)
    command = [python, "-m", "pytest", *options, str(HERE), *arguments]
    if arguments and arguments[0].endswith(".py") and (HERE / arguments[0]).is_file():
        command = [python, str(HERE / arguments[0]), *arguments[1:]]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
