"""What is under way: the folder beside a run's output that outlives its process.

    with Work(out, settings) as work:
        work.checkpoint()              # the newest that is whole, to go on from
        work.seal(folder, facts)       # once a checkpoint is written: from now on it is whole
        work.finish(files)             # now `out` is there

The work lies beside `out`, in .NAME.training. A checkpoint counts once its seal is written, which has the size and
SHA-256 of each of its files: what a killed process, a full disk or a lost machine left of one is passed over.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

SETTINGS_NAME, SEAL_NAME, LOCK_NAME = "settings.json", "sealed.json", "lock"
REPORT_NAME = "training.json"
_CHECKPOINTS = "checkpoints"
_CHECKPOINT = re.compile(r"checkpoint-([0-9]+)")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = (
    "no space left",
    "disk quota",
    "file too large",
    "iostream error",
    "pytorchstreamwriter failed",
    "enospc",
)


class WorkInvalid(Exception):
    """The output or its work can't be used, or not be written; the message names it and the remedy."""


class Work:
    """One run's folder. One process at a time. Raises WorkInvalid."""

    def __init__(self, out: Path, settings: Mapping[str, Any]) -> None:
        """`settings` are all that decides what becomes of a run: work begun with others is not gone on with."""
        self.out = Path(os.path.abspath(out))  # what is relative may have no name, as `.` hasn't
        self.folder = _folder(self.out)
        self.checkpoints = self.folder / _CHECKPOINTS
        self.adapter = self.folder / "adapter"
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._lock: IO[bytes]

    def __enter__(self) -> Self:
        if self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir())):
            raise WorkInvalid(
                f"there is something at {self.out} already; name a new directory with --out, or remove it"
            )
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / LOCK_NAME).open("wb")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._lock.close()
                raise WorkInvalid(
                    f"another process is training {self.out}; wait for it, or name another directory with --out"
                ) from None
            try:
                self._check_settings()
            except BaseException:
                if self.newest() is None:
                    shutil.rmtree(self.folder, ignore_errors=True)
                self._lock.close()
                raise
        except OSError as error:
            raise self.full(error) or error from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self.folder.exists() and self.newest() is None:
            shutil.rmtree(self.folder, ignore_errors=True)  # nothing worth keeping
        self._lock.close()

    def checkpoint(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole checkpoint and the facts of its seal; those that aren't whole are removed."""
        for _, folder in sorted(self._numbered(), reverse=True):
            facts = _sealed(folder, self._settings)
            if facts is not None:
                return folder, facts
            shutil.rmtree(folder, ignore_errors=True)
        return None

    def newest(self) -> int | None:
        """The step of the newest sealed checkpoint, by its name."""
        steps = [step for step, folder in self._numbered() if (folder / SEAL_NAME).is_file()]
        return max(steps, default=None)

    def seal(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """All of a checkpoint is written."""
        files = {
            str(path.relative_to(folder)): [path.stat().st_size, _digest(path)]
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != SEAL_NAME
        }
        seal = {"files": files, "facts": dict(facts), "settings": self._settings}
        _replace(folder / SEAL_NAME, json.dumps(seal))

    def finish(self, files: Mapping[str, str]) -> None:
        """Put `files` beside the adapter and give it its name; the work is done with. Raises WorkInvalid, OSError.

        The checkpoints go once the output would outlive the machine's being switched off.
        """
        try:
            for name, content in files.items():
                (self.adapter / name).write_text(content, encoding="utf-8")
            for path in (*self.adapter.iterdir(), self.adapter):
                _sync(path)
        except OSError as error:
            raise self.full(error) or error from error
        self.adapter.rename(self.out)
        _sync(self.out.parent)
        shutil.rmtree(self.folder, ignore_errors=True)

    def full(self, error: BaseException) -> WorkInvalid | None:
        """The words for what failed because the disk is full; None where that isn't why.

        What couldn't be written whole is removed: it takes the room that is missing. Libraries turn the system's
        error into their own, so that words are all there is of it.
        """
        number = getattr(error, "errno", None)
        if number not in _FULL and not any(word in str(error).lower() for word in _FULL_WORDS):
            return None
        for _, folder in self._numbered():
            if not (folder / SEAL_NAME).is_file():
                shutil.rmtree(folder, ignore_errors=True)
        step = self.newest()
        kept = f"step {step} is kept in {self.folder}" if step else "nothing of the training could be kept yet"
        why = os.strerror(number) if number in _FULL else os.strerror(errno.ENOSPC)
        return WorkInvalid(f"{self.folder} can't be written: {why}; {kept}: make room and give the same command again")

    def check_room(self, nbytes: int) -> None:
        """Raises WorkInvalid where the disk has less than that left."""
        free = shutil.disk_usage(self.folder).free
        if free < nbytes:
            raise WorkInvalid(
                f"training writes about {nbytes / 1e6:,.0f} MB of checkpoints to {self.folder}, and the disk has "
                f"{free / 1e6:,.0f} MB left; make room, or name another place with --out"
            )

    # -- inside ----------------------------------------------------------------------------------------------

    def _numbered(self) -> list[tuple[int, Path]]:
        return _numbered(self.checkpoints)

    def _check_settings(self) -> None:
        """Raises WorkInvalid, where there is something to go on with and it is another run's."""
        file = self.folder / SETTINGS_NAME
        try:
            begun = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            _replace(file, json.dumps(self._settings))
            return
        names = [name for name in {**begun, **self._settings} if begun.get(name) != self._settings.get(name)]
        if names and self.newest() is None:
            _replace(file, json.dumps(self._settings))
        elif names:
            told = "; ".join(
                f"{name} was {begun.get(name)!r} and is {self._settings.get(name)!r}" for name in names[:3]
            )
            raise WorkInvalid(
                f"{self.folder} holds unfinished training with other settings ({told}); give the same ones to go on "
                "with "
                "it, or remove it to begin anew"
            )


def kept_settings(out: Path) -> dict[str, Any]:
    """Those that a finished run wrote into its output, or else the newest sealed checkpoint of its work; or none."""
    report = finished_report(out)
    if report is not None:
        found = report.get("settings")
        return found if isinstance(found, dict) else {}
    for _, folder in sorted(_numbered(_folder(out) / _CHECKPOINTS), reverse=True):
        try:
            settings: dict[str, Any] = json.loads((folder / SEAL_NAME).read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, KeyError):
            continue  # not whole
        return settings
    return {}


def finished_report(out: Path) -> dict[str, Any] | None:
    """What a finished run wrote into its output; None where there is none."""
    try:
        found = json.loads((out / REPORT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _folder(out: Path) -> Path:
    return out.parent / f".{out.name}.training"


def _numbered(checkpoints: Path) -> list[tuple[int, Path]]:
    """Whole or not, by their steps."""
    if not checkpoints.is_dir():
        return []
    found = ((_CHECKPOINT.fullmatch(path.name), path) for path in checkpoints.iterdir())
    return [(int(match[1]), path) for match, path in found if match]


def _sealed(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The facts of a checkpoint that is whole, and of these settings: a lost machine may leave the work's own empty."""
    try:
        seal = json.loads((folder / SEAL_NAME).read_text(encoding="utf-8"))
        if seal["settings"] != settings:
            return None
        for name, (size, digest) in seal["files"].items():
            path = folder / name
            if path.stat().st_size != size or _digest(path) != digest:
                return None
    except (OSError, ValueError, KeyError):
        return None
    facts: dict[str, Any] = seal["facts"]
    return facts


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """What was written to a file, or the names in a directory, is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _replace(path: Path, content: str) -> None:
    """Whole or not at all."""
    beside = path.with_name(f"{path.name}.new")
    beside.write_text(content, encoding="utf-8")
    beside.replace(path)
