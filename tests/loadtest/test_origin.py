"""The head of every report: the commit that it ran at is the clone's own, and nobody else's."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from livery_loadtest import origin
from livery_loadtest.origin import Origin, document, own_commit


def git(folder: Path, *arguments: str) -> str:
    settings = ["-c", "user.name=A", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *settings, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_report_names_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copy(origin.__file__, tmp_path))
    monkeypatch.setattr(origin, "__file__", str(copy))
    assert own_commit() is None, "it lies in no clone"
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "Another project's")
    assert own_commit() is None, "it is only installed into another's clone"
    git(tmp_path, "add", copy.name)
    git(tmp_path, "commit", "-q", "-m", "Its own")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert own_commit() == commit
    copy.write_text(copy.read_text() + "# changed\n")
    head = document("a/1", Origin.here("1.0"), ["msgspec"], {"rows": 1})
    assert head["origin"].commit == f"{commit}+changes"
    assert (head["schema"], head["rows"], list(head["versions"])) == ("a/1", 1, ["msgspec"])
