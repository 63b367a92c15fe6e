"""Environments for clients that others wrote: built once per set of requirements, in the user's cache folder.

The table is environments.toml. Nothing of these clients is installed beside Livery: several ask for versions of each
other's packages that exclude one another.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from livery_loadtest.peers import peers_folder, telling_lines

HERE = Path(__file__).parent
TABLE = HERE / "environments.toml"
CLIENTS = HERE / "clients"
NODE_MAJOR = 20
MARKER = ".complete"
REMEDY = "The package index must be reachable; the next run builds this environment again from its beginning."


class PartMissing(Exception):
    """A program that the suite needs isn't on this machine; the message says which and where to get it."""


@dataclass(frozen=True)
class Suite:
    """One client and the tests that drive it: a row of the table."""

    name: str
    server: str
    tests: str
    flags: tuple[str, ...] = ()
    python: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    interpreter: str | None = None
    borrows: bool = False

    @property
    def folder(self) -> Path:
        """Where its environment lies: suites with the same requirements share one."""
        facts = [self.python, self.npm, self.interpreter or sys.version, own_packages() if self.borrows else ""]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
        return peers_folder().parent / "conformance" / f"{(self.python + self.npm)[0].replace('/', '-')}-{digest}"

    def ensure(self, console: Console) -> None:
        """Build the environment unless it is there. Raises PartMissing and peers.EnvironmentFailed."""
        self.program()  # also where the environment is there: programs get uninstalled
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.folder.with_name(f"{self.folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be building the very same
            if (self.folder / MARKER).is_file():
                return
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            console.print(f"{self.name}: building its environment in {self.folder} (once)", soft_wrap=True)
            with console.status(self.name) as status:
                for line in self._build():
                    status.update(f"{self.name}: [dim]{escape(line[:100])}[/]")
            (self.folder / MARKER).touch()

    def program(self) -> str:
        """What its tests are run by. Raises PartMissing."""
        if self.npm:
            return _found("node", f"install Node.js {NODE_MAJOR} or newer with npm, from https://nodejs.org")
        if self.interpreter:
            return _found(self.interpreter, f"install {self.interpreter}, which this client needs")
        return sys.executable

    def command(self, report: Path) -> list[str]:
        """Runs the tests in the environment, in the folder `clients`, and leaves a JUnit report."""
        if self.npm:
            reporters = ["--test-reporter=spec", "--test-reporter-destination=stdout"]
            reporters += ["--test-reporter=junit", f"--test-reporter-destination={report}"]
            # Modules are looked up beside the file that imports them, so the environment has a copy of it.
            copy = shutil.copy(CLIENTS / self.tests, self.folder)
            return [self.program(), "--test", *reporters, str(copy)]
        python = str(self.folder / "bin" / "python")
        options = ["-c", str(CLIENTS / "pytest.ini"), "-p", "no:cacheprovider", "-ra", f"--junitxml={report}"]
        return [python, "-B", "-m", "pytest", *options, str(CLIENTS / self.tests)]

    def _build(self) -> Iterator[str]:
        if self.npm:
            npm = _found("npm", "install it with Node.js, from https://nodejs.org")
            (self.folder / "package.json").write_text("{}")
            yield from telling_lines(
                [npm, "install", "--no-audit", "--no-fund", "--prefix", str(self.folder), *self.npm], REMEDY
            )
            return
        yield from telling_lines([self.program(), "-m", "venv", str(self.folder)], REMEDY)
        if self.borrows:
            for packages in self.folder.glob("lib/python3*/site-packages"):
                (packages / "borrowed.pth").write_text(own_packages())
        pip = [str(self.folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check"]
        yield from telling_lines([*pip, *self.python], REMEDY)


def suites() -> list[Suite]:
    """The rows of the table, in its order."""
    table = tomllib.loads(TABLE.read_text())
    return [
        Suite(
            name,
            row["server"],
            row["tests"],
            flags=tuple(row.get("flags", ())),
            python=tuple(row.get("python", ())),
            npm=tuple(row.get("npm", ())),
            interpreter=row.get("with"),
            borrows=row.get("borrows", False),
        )
        for name, row in table.items()
    ]


def own_packages() -> str:
    """Where the packages of the environment that runs this lie."""
    return sysconfig.get_path("purelib")


def _found(program: str, remedy: str) -> str:
    """Where a program lies. One that is there and can't say its version is a stand-in for something not installed."""
    found = shutil.which(program)
    if found is None or subprocess.run([found, "--version"], capture_output=True, timeout=60).returncode:
        raise PartMissing(f"{program} isn't on this machine: {remedy}")
    return found
