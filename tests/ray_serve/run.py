"""Run the tests of Ray Serve, or one of the scripts beside them, in an environment of their own with Ray in it.

    python tests/ray_serve/run.py [timelines.py | measure.py | pytest arguments]

The environment lies in the user's cache, is built once, and borrows everything but Ray from the one that runs this.
Where it can't be built, that is said and passed over; with CI=true it is a failure.
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
from livery_loadtest.peers import EnvironmentFailed

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RAY = "ray[serve]==2.60.0"
OWN = ("server", "adapters", "loadtest", "tests")


def main(arguments: Sequence[str]) -> int:
    suite = Suite("ray", server="", tests="", python=(RAY,), borrows=True)
    try:
        suite.ensure(Console())
    except (PartMissing, EnvironmentFailed) as missing:
        print(f"Ray's environment could not be built: {missing}", file=sys.stderr)
        return int(os.environ.get("CI") == "true")
    python = str(suite.folder / "bin" / "python")
    options = ["-m", "ray", "--disable-warnings", "-p", "no:cacheprovider"]
    command = [python, "-m", "pytest", *options, str(HERE), *arguments]
    if arguments and arguments[0].endswith(".py") and (HERE / arguments[0]).is_file():
        command = [python, str(HERE / arguments[0]), *arguments[1:]]
    paths = os.pathsep.join(str(ROOT / name) for name in OWN)
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
