"""Files that are cut, missing, of another format, or no files at all."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import socket
import stat
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hostile.base import good
from hostile.case import Build, Case, raw_config, raw_weights, write
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME


def _header_end(weights: bytes) -> int:
    return 8 + int.from_bytes(weights[:8], "little")


def _cut(name: str, change: Callable[[bytes], bytes], says: str) -> Case:
    return Case("cut", name, raw_weights(change), "incomplete", says)


CUT = (
    _cut("weights of no bytes", lambda data: b"", "has 0 bytes and needs at least 8"),
    _cut("weights end in the header's length", lambda data: data[:7], "has 7 bytes and needs at least 8"),
    _cut("weights end before the header", lambda data: data[:8], "has 8 bytes and needs at least"),
    _cut("weights end in the header", lambda data: data[:100], "has 100 bytes and needs at least"),
    _cut("weights end before the data", lambda data: data[: _header_end(data)], "may still be being copied"),
    _cut("weights end in the data", lambda data: data[: _header_end(data) + 64], "may still be being copied"),
    _cut("weights lack their last byte", lambda data: data[:-1], "otherwise copy it again"),
    Case("cut", "configuration of no bytes", raw_config(lambda data: b""), "incomplete", f"{CONFIG_NAME} is empty"),
    Case("cut", "configuration ends in the middle", raw_config(lambda data: data[:-40]), "bad_json", "not valid JSON"),
    Case("cut", "a byte after the data", raw_weights(lambda data: data + b"\0"), "bad_header", "header accounts for"),
    Case("cut", "an archive after the data", raw_weights(lambda data: data + _zip(data)), "bad_header", "accounts for"),
)


# -- missing, or under another name ----------------------------------------------------------------------


def _only(name: str, content: Callable[[], bytes]) -> Build:
    def build(directory: Path) -> None:
        directory.mkdir()
        (directory / name).write_bytes(content())

    return build


def _weights_named(name: str) -> Build:
    def build(directory: Path) -> None:
        write(directory, good()[0], None)
        (directory / name).write_bytes(good()[1])

    return build


MISSING = (
    Case(
        "missing",
        "everything",
        lambda path: path.mkdir(),
        "missing_config",
        "no adapter_config.json",
        mistake="no file",
    ),
    Case(
        "missing",
        "all but the weights",
        lambda path: write(path, None, good()[1]),
        "missing_config",
        "copy the directory PEFT's save_pretrained made",
        mistake="no file",
    ),
    Case(
        "missing",
        "the configuration in capitals",
        _only("Adapter_Config.json", lambda: good()[0]),
        "missing_config",
        "there is 'Adapter_Config.json'",
    ),
    Case("missing", "the configuration alone", lambda path: write(path, good()[0], None), "missing_weights", "no adap"),
    Case(
        "missing",
        "the weights in capitals",
        _weights_named(WEIGHTS_NAME.upper()),
        "missing_weights",
        "is 'ADAPTER_MODEL",
    ),
    Case(
        "missing",
        "the weights in parts",
        _weights_named("adapter_model-00001-of-00002.safetensors"),
        "missing_weights",
        "or join its parts",
    ),
    Case("missing", "the weights as a pickle", _weights_named("adapter_model.bin"), "pickle_only", "can run code"),
)


# -- another format under the right name -----------------------------------------------------------------


class _Bomb:
    """What a pickle runs when it is opened."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch opened-the-pickle",)


def _zip(data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../adapter_config.json", data)
    return stream.getvalue()


def _tar(data: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        entry = tarfile.TarInfo("/etc/cron.d/adapter")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def _format(name: str, change: Callable[[bytes], bytes], says: str, mistake: str = "") -> Case:
    return Case("format", name, raw_weights(change), "not_safetensors", says, mistake=mistake)


FORMATS = (
    _format("a pickle that runs a command", lambda data: pickle.dumps(_Bomb(), protocol=4), "a pickle"),
    _format("a zip with a name that climbs", _zip, "a zip archive or a PyTorch file"),
    _format("a tar with an absolute name", _tar, "a tar archive"),
    _format("gzip", lambda data: gzip.compress(data, mtime=0), "a gzip archive", "gzip"),
    _format("gzip of a bomb", lambda data: gzip.compress(bytes(1 << 24), mtime=1), "a gzip archive", "gzip"),
    _format("a Git LFS pointer", lambda data: _LFS, "git lfs pull"),
    _format("a web page", lambda data: b"<!DOCTYPE html><title>404</title>", "a web page"),
    _format("GGUF", lambda data: b"GGUF" + (3).to_bytes(4, "little") + bytes(64), "a GGUF file"),
    Case("format", "a script", raw_weights(lambda data: b"#!/bin/sh\nexit 0\n" * 9), "bad_header", "no safetensors"),
    Case(
        "format", "the configuration is a Git LFS pointer", raw_config(lambda data: _LFS), "bad_json", "'version https"
    ),
    Case("format", "the configuration is YAML", raw_config(lambda data: b"r: 4\n"), "bad_json", "at 'r: 4"),
)


# -- no regular files ------------------------------------------------------------------------------------
# The server may read the directory that the adapter lies in; what lies beside that is forbidden ground.


def outside(directory: Path) -> Path:
    """A path where this server may not read."""
    return directory.parent.with_name("outside")


def _replaced(name: str, put: Callable[[Path], object]) -> Build:
    """A good adapter with something else in one file's place."""

    def build(directory: Path) -> None:
        write(directory, *good())
        (directory / name).unlink()
        put(directory / name)

    return build


def _link_outside(path: Path) -> None:
    outside(path.parent).write_bytes(good()[1])
    path.symlink_to(outside(path.parent))


def _socket(path: Path) -> None:
    fd = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{fd}/{path.name}")  # the path itself may be too long for a socket
    finally:
        os.close(fd)


def _device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # as /dev/zero: it has no end


def _linked_directory(directory: Path) -> None:
    write(outside(directory), *good())
    directory.symlink_to(outside(directory))


def _file(directory: Path) -> None:
    directory.write_bytes(good()[1])


def _climbing_link(directory: Path) -> None:
    write(outside(directory), *good())
    write(directory, None, good()[1])
    (directory / CONFIG_NAME).symlink_to(f"../../outside/{CONFIG_NAME}")


def _sparse(size: int) -> Callable[[Path], None]:
    def put(path: Path) -> None:
        with path.open("wb") as stream:
            stream.truncate(size)

    return put


def _local(name: str, build: Build, code: str, says: str, mistake: str = "") -> Case:
    return Case("file", name, build, code, says, "store", local=True, mistake=mistake)


def _special(file: str, found: str, put: Callable[[Path], object]) -> Case:
    says = f"{file} is {found}, not a regular file"
    return _local(f"{file} is {found}", _replaced(file, put), "not_regular", says)


def _link(name: str, file: str, put: Callable[[Path], object]) -> Case:
    says = f"{file} of 'adapter' is, links followed, outside"
    return _local(name, _replaced(file, put), "outside_root", says, mistake=says)


SPECIAL = (
    _link("weights are a link to elsewhere", WEIGHTS_NAME, _link_outside),
    _link("configuration links to a system file", CONFIG_NAME, lambda path: path.symlink_to("/etc/passwd")),
    _link("weights link to a device", WEIGHTS_NAME, lambda path: path.symlink_to("/dev/zero")),
    _link("configuration links to a directory of the system", CONFIG_NAME, lambda path: path.symlink_to("/proc/self")),
    _local(
        "configuration links upwards",
        _climbing_link,
        "outside_root",
        f"{CONFIG_NAME} of 'adapter' is, links",
        f"{CONFIG_NAME} of 'adapter' is, links followed, outside",
    ),
    _local(
        "the directory is a link",
        _linked_directory,
        "outside_root",
        f"{CONFIG_NAME} of 'adapter' is, links",
        f"{CONFIG_NAME} of 'adapter' is, links followed, outside",
    ),
    _local("the directory is a file", _file, "missing_config", "no adapter_config.json in 'adapter'", "no file"),
    _local("the directory is not there", lambda path: None, "missing_config", "no adapter_config.json", "no file"),
    _local(
        "configuration links to nothing",
        _replaced(CONFIG_NAME, lambda path: path.symlink_to("nowhere")),
        "missing_config",
        "a link that leads nowhere",
    ),
    _local(
        "weights link to nothing",
        _replaced(WEIGHTS_NAME, lambda path: path.symlink_to("nowhere")),
        "missing_weights",
        "a link that leads nowhere",
    ),
    _special(WEIGHTS_NAME, "a symbolic link", lambda path: path.symlink_to(path.name)),
    _special(CONFIG_NAME, "a FIFO", os.mkfifo),
    _special(WEIGHTS_NAME, "a FIFO", os.mkfifo),
    _special(CONFIG_NAME, "a directory", Path.mkdir),
    _special(WEIGHTS_NAME, "a directory", Path.mkdir),
    _special(CONFIG_NAME, "a socket", _socket),
    _special(WEIGHTS_NAME, "a device", _device),
    _local("weights can't be read", _replaced(WEIGHTS_NAME, lambda path: path.touch(mode=0)), "unreadable", "permiss"),
    _local("weights of three gigabytes", _replaced(WEIGHTS_NAME, _sparse(3 << 30)), "too_large", "limit of 2147483648"),
    Case(
        "file",
        "a configuration of 2 MB",
        raw_config(lambda data: data + b" " * (2 << 20)),
        "too_large",
        "1048576 bytes",
        "store",
        mistake="configuration too large",
    ),
)


# -- strange and fine ------------------------------------------------------------------------------------


def _hard_links(directory: Path) -> None:
    write(outside(directory), *good())
    directory.mkdir()
    for file in (CONFIG_NAME, WEIGHTS_NAME):
        os.link(outside(directory) / file, directory / file)


def _mounted(directory: Path) -> None:
    """As Kubernetes mounts a volume: links to a directory that is a link itself."""
    directory.mkdir()
    write(directory / "..2026_11_21", *good())
    (directory / "..data").symlink_to("..2026_11_21")
    for file in (CONFIG_NAME, WEIGHTS_NAME):
        (directory / file).symlink_to(f"..data/{file}")


def _company(directory: Path) -> None:
    """What lies beside the two files is nobody's business: it is neither opened nor copied."""
    write(directory, *good())
    (directory / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    (directory / "tokenizer.json").write_text("{")
    (directory / "modeling.py").write_text("raise SystemExit")
    (directory / "training_args.bin").write_bytes(pickle.dumps(_Bomb()))
    (directory / "adapter_model.bin").write_bytes(pickle.dumps(_Bomb()))
    (directory / "README.md").symlink_to("/etc/passwd")
    os.mkfifo(directory / "pipe")


FINE = (
    Case("fine", "a good adapter", lambda path: write(path, *good()), ""),
    Case("fine", "hard links", _hard_links, "", local=True),
    Case("fine", "links that stay where this server may read", _mounted, "", local=True),
    Case("fine", "scripts, pickles, links and pipes beside the two files", _company, "", local=True),
)

# An upload has no other files that could be named.
CASES = (*CUT, *(replace(case, local=True) for case in MISSING), *FORMATS, *SPECIAL, *FINE)
