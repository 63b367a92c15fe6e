"""The two files of an adapter on disk: opened without following links, headers parsed by hand, no torch.

A safetensors file is 8 bytes of header length (little endian), a JSON header naming each tensor's dtype, shape
and byte range, then the bytes, without gaps. So the header alone says how long the file must be: a shorter one
is still being copied.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from livery_adapters.refusal import AdapterRefused, Limits
from livery_adapters.strict_json import parse_object

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
FILE_NAMES = (CONFIG_NAME, WEIGHTS_NAME)
INTEGERS = {"U8": 1, "I16": 2, "I32": 4, "I64": 8}  # the few types that need them say which of their tensors
ITEM_SIZE = {"F32": 4, "F16": 2, "BF16": 2, **INTEGERS}
CHUNK = 1 << 20

# Names of real models have up to 12 parts and 150 characters.
_TENSOR_NAME = re.compile(r"[A-Za-z0-9_.-]{1,256}")
_MAX_PARTS = 32
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# What is often found under the name of a safetensors file: where some bytes are, what it is then, what to do.
_OTHER_FORMATS = (
    (0, b"version https://git-lfs", "a Git LFS pointer and no weights", "fetch them with git lfs pull"),
    (0, b"PK\x03\x04", "a zip archive or a PyTorch file", "save the weights with safetensors"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it"),
    (0, b"\x80", "a pickle, which can run code and is never opened", "save the weights with safetensors"),
    (0, b"GGUF", "a GGUF file", "use the adapter that it was made from"),
    (0, b"<", "a web page", "download the file itself"),
    (257, b"ustar", "a tar archive", "unpack it"),
)
_VALUES_OF_TENSOR = 16
_PROBE = 512  # bytes that show what else a file is


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of the file; `begin` and `end` are byte offsets into the file itself."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@contextmanager
def open_regular(directory: Path, name: str) -> Iterator[BinaryIO]:
    """Open one file of an adapter for reading.

    Neither the directory nor the file may be a symbolic link, and the file must be a regular one. Raises
    AdapterRefused (missing_config, missing_weights, not_regular, unreadable).
    """
    fd = _open_fd(directory, name)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):  # before fdopen, which raises on a directory and keeps it open
        os.close(fd)
        raise not_regular(name, kind_of(mode))
    with os.fdopen(fd, "rb") as stream:
        yield stream


def _open_fd(directory: Path, name: str) -> int:
    folder = None
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        raise missing_file(directory, name) from None
    except OSError as error:
        if folder is None and error.errno in (errno.ELOOP, errno.ENOTDIR):
            found = "a symbolic link" if directory.is_symlink() else "not a directory"
            raise AdapterRefused(
                "not_regular", f"{directory.name!r} is {found}; copy the adapter's own directory there"
            ) from None
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise not_regular(name, "a symbolic link" if error.errno == errno.ELOOP else "a socket") from None
        reason = os.strerror(error.errno) if error.errno else "unknown error"
        raise AdapterRefused(
            "unreadable", f"{name} of {directory.name!r} can't be read: {reason}; fix its permissions"
        ) from None
    finally:
        if folder is not None:
            os.close(folder)


def kind_of(mode: int) -> str:
    """What a file of this `st_mode` is, in words; empty for a regular one."""
    return _KINDS.get(stat.S_IFMT(mode), "")


def not_regular(name: str, found: str = "") -> AdapterRefused:
    """The refusal of a link, a FIFO, a directory or the like in a file's place; `found` says which."""
    return AdapterRefused(
        "not_regular",
        f"{name} is {found + ', ' if found else ''}not a regular file; copy the real file there (for example with "
        "cp -L)",
    )


def missing_file(directory: Path, name: str) -> AdapterRefused:
    """The refusal of a directory that lacks one of the two files, saying so when it holds a pickle instead."""
    others = _namesakes(directory, name)
    remedy = "copy the directory PEFT's save_pretrained made"
    if others:
        remedy = f"there is {others}: rename it, or join its parts"
    if (directory / name).is_symlink():
        remedy = "what has that name is a link that leads nowhere; copy the real file there"
    if name == CONFIG_NAME:
        return AdapterRefused("missing_config", f"no {CONFIG_NAME} in {directory.name!r}; {remedy}")
    if any((directory / other).exists() for other in ("adapter_model.bin", "adapter_model.pt")):
        return AdapterRefused(
            "pickle_only",
            f"{directory.name!r} holds its weights only as a pickle, which can run code and is never opened; save "
            f"them as {WEIGHTS_NAME} (PEFT: save_pretrained(..., safe_serialization=True))",
        )
    return AdapterRefused("missing_weights", f"no {WEIGHTS_NAME} in {directory.name!r}; {remedy}")


def _namesakes(directory: Path, name: str) -> str:
    """Files that somebody may have meant: in capitals, or in several parts, which must be renamed or joined first."""
    stem = Path(name).stem
    try:
        names = [path.name for path in islice(directory.iterdir(), 1000)]
    except OSError:
        return ""
    found = sorted(other for other in names if other != name and other.lower().startswith(stem))
    return ", ".join(repr(other[:80]) for other in found[:2])


def read_config_bytes(directory: Path, limits: Limits) -> bytes:
    """The bytes of adapter_config.json. Raises AdapterRefused (incomplete when the file is empty)."""
    with open_regular(directory, CONFIG_NAME) as stream:
        data = stream.read(limits.max_config_bytes + 1)
    if not data:
        raise AdapterRefused("incomplete", f"{CONFIG_NAME} is empty; it may still be being copied")
    if len(data) > limits.max_config_bytes:
        raise AdapterRefused(
            "too_large", f"{CONFIG_NAME} is over {limits.max_config_bytes} bytes; PEFT writes one to five thousand"
        )
    return data


class WeightsFile:
    """The open file of an adapter's weights: `header` is the text of its header, `size` that of the whole file."""

    def __init__(self, stream: BinaryIO, limits: Limits) -> None:
        """Raises AdapterRefused where it can't be such a file, or is over a limit."""
        self._stream = stream
        self.size = os.fstat(stream.fileno()).st_size
        self.header = _header_of(stream, self.size, limits)

    def sha256(self) -> str:
        """Of the whole file, in hex."""
        self._stream.seek(0)
        digest = hashlib.sha256()
        while chunk := self._stream.read(CHUNK):
            digest.update(chunk)
        return digest.hexdigest()


@contextmanager
def open_weights(directory: Path, limits: Limits) -> Iterator[WeightsFile]:
    """The weights of an adapter. Raises AdapterRefused."""
    with open_regular(directory, WEIGHTS_NAME) as stream:
        yield WeightsFile(stream, limits)


def _header_of(stream: BinaryIO, size: int, limits: Limits) -> bytes:
    if size > limits.max_weight_bytes:
        raise AdapterRefused(
            "too_large",
            f"{WEIGHTS_NAME} has {size} bytes and the limit is {limits.max_weight_bytes}; raise --max-adapter-bytes or "
            "lower the adapter's rank",
        )
    head = stream.read(8)
    if len(head) < 8:
        raise _incomplete(size, "at least 8")
    length = int.from_bytes(head, "little")
    if length > limits.max_header_bytes or size < 8 + length:
        _check_format(head + stream.read(_PROBE - 8))
    if length > limits.max_header_bytes:
        raise AdapterRefused(
            "bad_header",
            f"the header of {WEIGHTS_NAME} claims {length} bytes and the limit is {limits.max_header_bytes}; "
            "this is no safetensors file of an adapter",
        )
    if size < 8 + length:
        raise _incomplete(size, f"at least {8 + length}")
    return stream.read(length)


def parse_header(text: bytes, size: int, limits: Limits) -> tuple[TensorEntry, ...]:
    """The entries of a header in file order, checked; the whole file has `size` bytes. Raises AdapterRefused."""
    _check_values(text, limits)
    header = parse_object(text, f"the header of {WEIGHTS_NAME}", code="bad_header", max_depth=4)
    _check_metadata(header.pop("__metadata__", {}))
    if not 0 < len(header) <= limits.max_tensors:
        raise AdapterRefused(
            "bad_header", f"{WEIGHTS_NAME} holds {len(header)} tensors; 1 to {limits.max_tensors} are accepted"
        )
    start = 8 + len(text)
    entries = sorted((_entry(name, value, start) for name, value in header.items()), key=lambda e: e.begin)
    _check_tiling(entries, start, size)
    return tuple(entries)


def _check_format(data: bytes) -> None:
    """Say what the file is where its first bytes tell. Raises AdapterRefused (not_safetensors)."""
    for at, magic, found, remedy in _OTHER_FORMATS:
        if data.startswith(magic, at):
            raise AdapterRefused("not_safetensors", f"{WEIGHTS_NAME} is {found}; {remedy}")


def _check_values(text: bytes, limits: Limits) -> None:
    """A value costs the parser some thirty times its bytes: no more than tensors of eight dimensions need."""
    most = _VALUES_OF_TENSOR * limits.max_tensors
    found = sum(text.count(mark) for mark in (b",", b"[", b"{"))
    if found > most:
        raise AdapterRefused(
            "bad_header",
            f"the header of {WEIGHTS_NAME} has {found} values, more than the {most} that {limits.max_tensors} tensors "
            "can have; this is no safetensors file of an adapter",
        )


def _check_metadata(value: object) -> None:
    """Nothing here needs it, but the safetensors library opens no file whose metadata isn't text by name."""
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise AdapterRefused(
            "bad_header",
            f"__metadata__ of {WEIGHTS_NAME} is {_shown(value)} and must be an object of text values; save the "
            "adapter again",
        )


def _entry(name: str, value: object, start: int) -> TensorEntry:
    if not _TENSOR_NAME.fullmatch(name) or name.count(".") >= _MAX_PARTS:
        raise AdapterRefused(
            "bad_header",
            f"tensor name {name[:80]!r} of {WEIGHTS_NAME} is not a dotted path of at most {_MAX_PARTS} parts and 256 "
            "characters",
        )
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _bad_entry(name, f"needs exactly dtype, shape and data_offsets and has {_fields_of(value)}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not _naturals(shape) or len(shape) > 8:
        raise _bad_entry(name, f"has the shape {_shown(shape)}, which is not a list of at most 8 sizes")
    if not _naturals(offsets) or len(offsets) != 2:
        raise _bad_entry(name, f"has the byte range {_shown(offsets)}, which is not a list of two sizes")
    if not isinstance(dtype, str) or dtype not in ITEM_SIZE:
        raise bad_dtype(name, dtype)
    begin, end = offsets
    if end - begin != math.prod(shape) * ITEM_SIZE[dtype]:
        raise _bad_entry(name, f"has {end - begin} bytes, which is not what {dtype} {shape} needs")
    return TensorEntry(name, dtype, tuple(shape), start + begin, start + end)


def bad_dtype(name: str, dtype: object) -> AdapterRefused:
    """A tensor of numbers that nothing here computes with."""
    return AdapterRefused(
        "bad_dtype",
        f"tensor {name} is {str(dtype)[:40]!r}; F32, F16 and BF16 are accepted: save the adapter in one of them",
    )


def _fields_of(value: object) -> str:
    return _shown(sorted(value)) if isinstance(value, dict) else _shown(value)


def _shown(value: object) -> str:
    """A value for a message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _bad_entry(name: str, reason: str) -> AdapterRefused:
    return AdapterRefused("bad_header", f"tensor {name} of {WEIGHTS_NAME} {reason}; save the adapter again")


def _check_tiling(entries: list[TensorEntry], start: int, size: int) -> None:
    position = start
    for entry in entries:
        if entry.begin != position:
            raise _bad_entry(entry.name, "overlaps another tensor or leaves a gap before it")
        position = entry.end
    if size < position:
        raise _incomplete(size, str(position))
    if size > position:
        raise AdapterRefused(
            "bad_header",
            f"{WEIGHTS_NAME} has {size} bytes and its header accounts for {position}; save the adapter again",
        )


def _incomplete(size: int, expected: str) -> AdapterRefused:
    return AdapterRefused(
        "incomplete",
        f"{WEIGHTS_NAME} has {size} bytes and needs {expected}; it may still be being copied, otherwise copy it again",
    )
