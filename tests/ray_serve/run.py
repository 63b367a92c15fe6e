"""Run the tests of Ray Serve, or one of the scripts beside them, in an environment of their own with Ray in it.

    python tests/ray_serve/run.py [timelines.py | measure.py | way.py | pytest arguments]

The environment lies in the user's cache, is built once, and borrows everything but Ray from the one that runs this.
Where it can't be built, nothing is tested: that is said, and with CI=true it is a failure. Ray runs as the README has
it: RAY_SERVE_ENABLE_HA_PROXY=0 RAY_SERVE_THROUGHPUT_OPTIMIZED=0 before the command, and it runs as it does by itself.
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
from postgres.server import MISSING, programs
from ray_serve.ports import ports_of

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RAY = "ray[serve]==2.60.0"
SETTINGS = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
OWN = ("server", "adapters", "loadtest", "tests")


def main(arguments: Sequence[str]) -> int:
    if programs() is None:
        return not_run("Ray Serve", MISSING)
    suite = Suite("ray", server="", tests="", python=(RAY,), borrows=True)
    try:
        suite.ensure(Console())
    except (PartMissing, EnvironmentFailed) as missing:
        return not_run("Ray Serve", missing)
    python = str(suite.folder / "bin" / "python")
    options = ["-m", "ray", "--disable-warnings", "-p", "no:cacheprovider"]
    named = any(Path(one.partition("::")[0]).exists() for one in arguments)
    command = [python, "-m", "pytest", *options, *([] if named else [str(HERE)]), *arguments]
    if arguments and arguments[0].endswith(".py") and (HERE / arguments[0]).is_file():
        command = [python, str(HERE / arguments[0]), *arguments[1:]]
    paths = os.pathsep.join(str(ROOT / name) for name in OWN)
    environ = {**SETTINGS, **ports_of(0), **os.environ, "PYTHONPATH": paths}
    return subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
