"""A PostgreSQL server of the tests' own, from the programs that are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MISSING = "PostgreSQL's server programs are not installed: apt-get install postgresql"
TIMEOUT_S = 120


def programs() -> Path | None:
    """The folder with `initdb` and `pg_ctl`, the newest where there are several."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


@contextmanager
def hung(url: str) -> Iterator[None]:
    """The server of a URL that `running` gave takes connections and says nothing, its processes being stopped."""
    home = Path(url.partition("host=")[2].partition("&")[0])
    main = int((home / "data" / "postmaster.pid").read_text().splitlines()[0])
    children = Path(f"/proc/{main}/task/{main}/children")
    os.kill(main, signal.SIGSTOP)  # first, or it would start others
    stopped = [main, *map(int, children.read_text().split())]
    try:
        for pid in stopped[1:]:
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


@contextmanager
def running(binaries: Path) -> Iterator[str]:
    """Start a server on a unix socket in a directory of its own and give its URL; stop and delete it afterwards.

    Its default order of text is a language's, not that of bytes, as on most servers.
    """
    home = Path(tempfile.mkdtemp(prefix="livery-pg-"))
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []  # initdb refuses root
    if user:
        shutil.chown(home, pwd.getpwnam("postgres").pw_uid, pwd.getpwnam("postgres").pw_gid)

    def call(program: str, *arguments: str) -> None:
        command = [*user, str(binaries / program), "-D", str(home / "data"), *arguments]
        done = subprocess.run(
            command, cwd=home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout.decode(errors="replace")

    try:
        order = ("--locale-provider=icu", "--icu-locale=en-US", "--locale=C.UTF-8")
        call("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync", *order)
        call("pg_ctl", "-w", "-l", str(home / "log"), "-o", f"-k {home} -h ''", "start")
        try:
            yield f"postgresql://postgres@/postgres?host={home}"
        finally:
            call("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home)
