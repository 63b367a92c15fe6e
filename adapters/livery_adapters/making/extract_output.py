"""An adapter's two files, written a module at a time so that what was written outlives the process.

    with Unfinished(out, settings, header_bytes) as work:
        for item in items:
            if item.path not in work.done:
                work.add(item.path, sources, tensors, facts)
        work.finish(config, beside)            # now `out` is there

The work lies beside `out`, in .NAME.extracting: the weights as they will be, their header still missing, and a journal
with a line for each finished module and the SHA-256 of its bytes. A safetensors header may end in spaces, so that room
for it is kept in front before the ranks are known, and nothing has to be copied at the end.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from livery_adapters.incoming import sync_directory
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tensor_file import CHUNK, CONFIG_NAME, WEIGHTS_NAME

JOURNAL_NAME = "journal.jsonl"
_VERSION = 2
_ENTRY_BYTES = 160  # of a header's line, beyond the tensor's name
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


@dataclass(frozen=True, slots=True)
class Piece:
    """A tensor to be written: its name, shape and dtype, and its rows in pieces of any size."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: Iterable[Tensor]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Piece:
        return cls(name, tuple(tensor.shape), tensor.dtype, (tensor,))


class Unfinished:
    """Weights under way to the new directory `out`; see the module's docstring.

    `settings` say what is being made: work that was begun with others is not gone on with. `done` are the facts of
    finished modules by key, those of earlier runs included. One process at a time. Raises AdapterRefused
    (output_exists, output_unfinished).
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], names: Sequence[str]) -> None:
        """`names` are those that tensors may have, each once: the header needs room for them."""
        out = Path(os.path.abspath(out))  # what is relative may have no name, as `.` hasn't
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise AdapterRefused(
                "output_exists", f"there is something at {out} already; name a new directory or remove it"
            )
        self.out = out
        self.folder = out.with_name(f".{out.name}.extracting")
        self.done: dict[str, dict[str, Any]] = {}
        self._begun = {"version": _VERSION, "settings": json.loads(json.dumps(settings))}
        self._room = 4096 + sum(len(name) + _ENTRY_BYTES for name in names)
        self._room += -self._room % 8
        self._end = 8 + self._room  # of what is finished and verified
        self._data: FileIO
        self._journal: FileIO

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Unbuffered: what a full disk refused must not be tried again when the file is closed.
        self._journal = (self.folder / JOURNAL_NAME).open("a+b", buffering=0)
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._journal.close()
            raise AdapterRefused(
                "output_unfinished", f"another process is writing {self.out}; wait for it, or name another directory"
            ) from None
        weights = self.folder / WEIGHTS_NAME
        self._data = weights.open("r+b" if weights.exists() else "w+b", buffering=0)
        try:
            self._go_on()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if not self.done and kind is not None:  # nothing worth keeping
            for name in (WEIGHTS_NAME, JOURNAL_NAME):
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()

    @property
    def nbytes(self) -> int:
        """Of the weights file, as far as it is finished."""
        return self._end

    def add(self, key: str, sources: Sequence[object], pieces: Iterable[Piece], facts: Mapping[str, Any]) -> None:
        """Write one module. `sources` say what it was made of, in JSON's types.

        Raises AdapterRefused (storage_full), OSError.
        """
        digest, tensors, begin = hashlib.sha256(), [], self._end
        try:
            for piece in pieces:
                tensors.append([piece.name, _DTYPES[piece.dtype], list(piece.shape)])
                for rows in piece.rows:
                    data = rows.to(piece.dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data
                    digest.update(data)
                    _write(self._data, data)
                    begin += len(data)
            line = {"key": key, "sources": list(sources), "tensors": tensors, "bytes": begin - self._end}
            line |= {"sha256": digest.hexdigest(), "facts": dict(facts)}
            self._write_line(line)
        except OSError as failed:
            raise self._full(failed) from failed
        self._end = begin
        self._places[key] = len(self._lines)
        self._lines.append(line)
        self.done[key] = dict(facts)

    def redo(self, key: str, sources: Sequence[object]) -> bool:
        """Whether a module is yet to be made: it isn't finished, or was made of other files.

        Then everything behind it is made anew as well, as the file is in the order of the work.
        """
        at = self._places.get(key)
        if at is None:
            return True
        if self._lines[at]["sources"] == json.loads(json.dumps(list(sources))):
            return False
        self._keep(at)
        return True

    def finish(self, config: Mapping[str, object], metadata: Mapping[str, str], beside: Mapping[str, bytes]) -> None:
        """Write what is left, `beside` too, and give the directory its name: from then on all of it is there.

        Raises AdapterRefused (storage_full), OSError.
        """
        try:
            header = self._header(metadata)
            self._data.seek(0)
            _write(self._data, len(header).to_bytes(8, "little") + header)
            self._data.truncate(self._end)
            os.fsync(self._data.fileno())
            files = {CONFIG_NAME: (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(), **beside}
            for name, content in files.items():
                _put(self.folder / name, content)
            sync_directory(self.folder)
        except OSError as failed:
            raise self._full(failed) from failed
        self.folder.rename(self.out)
        sync_directory(self.out.parent)
        (self.out / JOURNAL_NAME).unlink()

    def discard(self) -> None:
        """Forget all modules: there is nothing to be gone on with."""
        self._keep(0)

    # -- going on ------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Read the journal and keep what the file really holds of it. Raises AdapterRefused (output_unfinished)."""
        self._lines: list[dict[str, Any]] = []
        self._ends: list[int] = []  # of the journal's lines, in bytes; the first one tells the settings
        self._journal.seek(0)
        for text in self._journal.read().splitlines(keepends=True):
            line = _parsed(text)
            if line is None:
                break
            self._lines.append(line)
            self._ends.append(len(text) + (self._ends[-1] if self._ends else 0))
        if not self._lines:
            self._journal.truncate(0)
            self._write_line(self._begun)
            self._keep(0)
            return
        if self._lines.pop(0) != self._begun:
            raise AdapterRefused(
                "output_unfinished",
                f"{self.folder} holds unfinished work with other settings or other models; give the same ones to go "
                "on with it, or remove it to begin anew",
            )
        self._keep(self._verified())

    def _verified(self) -> int:
        """How many modules from the first on lie in the file as the journal says."""
        self._data.seek(8 + self._room)
        for count, line in enumerate(self._lines):
            digest, left = hashlib.sha256(), line["bytes"]
            while left and (chunk := self._data.read(min(CHUNK, left))):
                digest.update(chunk)
                left -= len(chunk)
            if left or digest.hexdigest() != line["sha256"]:
                return count
        return len(self._lines)

    def _keep(self, count: int) -> None:
        """Forget all modules but the first `count`."""
        self._lines = self._lines[:count]
        self.done = {line["key"]: line["facts"] for line in self._lines}
        self._end = 8 + self._room + sum(line["bytes"] for line in self._lines)
        self._data.truncate(self._end)
        self._data.seek(self._end)
        self._ends = self._ends[: count + 1]
        self._journal.truncate(self._ends[-1])
        self._places = {line["key"]: place for place, line in enumerate(self._lines)}

    def _write_line(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        _write(self._journal, data)
        self._ends.append(len(data) + (self._ends[-1] if self._ends else 0))

    def _header(self, metadata: Mapping[str, str]) -> bytes:
        entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
        position = 0
        for line in self._lines:
            for name, dtype, shape in line["tensors"]:
                size = 4 if dtype == "F32" else 2
                for length in shape:
                    size *= length
                entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
                position += size
        data = json.dumps(entries).encode()
        if len(data) > self._room:
            raise ValueError(f"a header of {len(data)} bytes was planned as {self._room}")
        return data.ljust(self._room)

    def _full(self, failed: OSError) -> Exception:
        if failed.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return failed
        return AdapterRefused(
            "storage_full",
            f"{self.out} can't be written: {os.strerror(failed.errno)}; {len(self.done)} finished modules are kept in "
            f"{self.folder}: make room and give the same command again to go on",
        )

    def _close(self) -> None:
        self._data.close()
        self._journal.close()


def replace(path: Path, content: bytes) -> None:
    """Write a file anew, which is as it was until all of it is on the disk. Raises OSError."""
    staged = path.with_name(f".{path.name}.part")
    try:
        _put(staged, content)
        staged.replace(path)
    except OSError:
        staged.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def _put(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _write(stream: FileIO, data: bytes | memoryview) -> None:
    """All of it: a single call may take less."""
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A line of the journal; None for the last one of a process that died while writing it."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and text.endswith(b"\n") else None
