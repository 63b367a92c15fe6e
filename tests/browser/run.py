"""Let a real browser, without a window, use the console of live servers, and read the load test's pages.

    python tests/browser/run.py [--only console|reports] [--screenshots FOLDER] [--chromium PROGRAM]

With --screenshots it tests nothing, and writes pictures of the console over the demo model and its adapters.
Chromium is the machine's own; playwright-core, which drives it, and axe-core, which judges what people with readers and
keyboards get, are installed once into the user's cache. What is missing is said with the remedy, and fails where
CI=true. Ends with 1 where a test failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent))

from browser.reports import reports
from conformance.environments import PartMissing, Suite
from foreign_parts import not_run
from livery_loadtest.peers import EnvironmentFailed

HERE = Path(__file__).parent
LIMIT_S = 600
START_S = 120
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
SUITE = Suite(
    "browser",
    server="console",
    tests=str(HERE / "console.test.mjs"),
    npm=("playwright-core@1.65.1", "axe-core@4.14.1"),
)
TROUBLE = replace(SUITE, name="trouble", tests=str(HERE / "trouble.test.mjs"))
REPORTS = replace(SUITE, name="reports", tests=str(HERE / "reports.test.mjs"))
PICTURES = replace(SUITE, name="pictures", tests=str(HERE / "pictures.mjs"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--screenshots", type=Path, help="write pictures of the console into this folder")
    parser.add_argument("--chromium", help="the browser, where it has another name")
    parser.add_argument("--only", choices=("console", "reports"), help="test one of them")
    options = parser.parse_args(arguments)
    try:
        chromium = browser(options.chromium)
        SUITE.ensure(Console())
    except PartMissing as missing:
        return not_run("the browser's tests", missing)
    except EnvironmentFailed as failed:
        print(f"The browser tests can't run: {failed}")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if not options.screenshots:
            failed = 0
            if options.only != "reports":
                with servers(scratch / "servers") as facts:
                    for suite in (SUITE, TROUBLE):
                        failed |= driven(suite, scratch, {**facts, "chromium": chromium})
            if options.only != "console":
                pages = reports(scratch / "reports")
                failed |= driven(REPORTS, scratch, {"reports": pages, "chromium": chromium})
            return failed
        from browser.demo import demo  # imports torch, which the tests don't need here

        options.screenshots.mkdir(parents=True, exist_ok=True)
        with demo(scratch / "servers") as facts:
            where = str(options.screenshots.resolve())
            return driven(PICTURES, scratch, {**facts, "chromium": chromium, "screenshots": where})


def driven(suite: Suite, folder: Path, facts: Mapping[str, object]) -> int:
    """Let the browser do what the suite says. 1 where something failed."""
    shutil.copy(HERE / "page.mjs", suite.folder)  # which tests import from beside them
    environment = os.environ | {"LIVERY_CONSOLE": json.dumps(facts)}
    command = suite.command(folder / "report.xml")
    return int(subprocess.run(command, env=environment, timeout=LIMIT_S, check=False).returncode != 0)


def browser(given: str | None) -> str:
    """Where the browser lies. Raises PartMissing."""
    for name in [given] if given else PROGRAMS:
        if found := shutil.which(name):
            return found
    raise PartMissing("there is no Chromium on this machine: apt-get install chromium, or give another with --chromium")


@contextmanager
def servers(folder: Path) -> Iterator[dict[str, object]]:
    """Servers while the block lasts, and what they told of themselves."""
    folder.mkdir()
    command = [sys.executable, "-W", "ignore", str(HERE / "servers.py"), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit("The servers for the browser didn't start; what they said stands above.")
        try:
            yield json.loads(line)
        finally:
            process.kill()


if __name__ == "__main__":
    sys.exit(main())
