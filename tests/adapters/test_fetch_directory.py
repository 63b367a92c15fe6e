"""Directories as operators have them: links are followed, but never out of the allowed folders."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from livery_adapters.fetching import copy_directory, fetch, open_adapter_files, parse_source
from livery_adapters.fetching.directory import _open_below
from livery_adapters.refusal import AdapterRefused
from livery_adapters.store import BlobStore
from livery_adapters.tensor_file import CONFIG_NAME, FILE_NAMES, WEIGHTS_NAME


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "adapters"
    folder.mkdir()
    return folder


def write(folder: Path, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_NAME).write_bytes(b"{}")
    (folder / WEIGHTS_NAME).write_bytes(weights)
    return folder


def contents(directory: Path, root: Path) -> list[bytes]:
    with open_adapter_files(directory, [root]) as files:
        return [files[name].read() for name in FILE_NAMES]


def refusal(directory: Path, *roots: Path) -> AdapterRefused:
    with pytest.raises(AdapterRefused) as caught, open_adapter_files(directory, roots):
        pass
    return caught.value


def kubernetes(root: Path) -> Path:
    """A mounted volume: the files are links through `..data`, itself a link to the state of a moment."""
    write(root / "mount" / "..2026_01_01")
    (root / "mount" / "..data").symlink_to("..2026_01_01")
    for name in FILE_NAMES:
        (root / "mount" / name).symlink_to(Path("..data") / name)
    return root / "mount"


def hub_cache(root: Path) -> Path:
    """A snapshot of the hub's cache: the files are links to blobs named by their hash."""
    write(root / "models" / "made")
    (root / "models" / "blobs").mkdir()
    snapshot = root / "models" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in FILE_NAMES:
        (root / "models" / "made" / name).rename(root / "models" / "blobs" / f"hash-of-{name}")
        (snapshot / name).symlink_to(Path("../../blobs") / f"hash-of-{name}")
    return snapshot


def linked_directory(root: Path) -> Path:
    write(root / "real")
    (root / "link").symlink_to("real")
    return root / "link"


@pytest.mark.parametrize("made", [lambda root: write(root / "plain"), kubernetes, hub_cache, linked_directory])
def test_links_below_the_root_are_followed(made: Callable[[Path], Path], root: Path, tmp_path: Path) -> None:
    directory = made(root)
    assert contents(directory, root) == [b"{}", b"weights"]
    (tmp_path / "other name").symlink_to(root)
    assert contents(directory, tmp_path / "other name") == [b"{}", b"weights"]  # a root may be a link as well


@pytest.mark.parametrize("through", ["directory", "file", "chain", "parent"])
def test_nothing_outside_the_roots_is_read(through: str, root: Path, tmp_path: Path) -> None:
    secret = write(tmp_path / "secret")
    directory = root / "pirate"
    if through == "directory":
        directory.symlink_to(secret)
    elif through == "parent":
        (root / "up").symlink_to(tmp_path)
        directory = root / "up" / "secret"
    else:
        write(directory)
        (directory / WEIGHTS_NAME).unlink()
        (root / "hop").symlink_to(secret)
        target = root / "hop" if through == "chain" else secret
        (directory / WEIGHTS_NAME).symlink_to(target / WEIGHTS_NAME)
    refused = refusal(directory, root)
    assert refused.code == "outside_root"
    assert "secret" not in refused.message.replace(repr(directory.name), "")
    assert "--allow-source" in refused.message
    assert refusal(directory).code == "outside_root"  # no root allows nothing
    with open_adapter_files(directory, [root, secret]):  # another root may
        pass


def test_a_root_is_no_prefix_of_a_name(root: Path, tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "adapters2"), root).code == "outside_root"


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("make", [fifo, unix_socket, Path.mkdir, lambda path: path.symlink_to(path.name)])
def test_what_is_no_regular_file_is_refused_without_waiting(make: Callable[[Path], None], root: Path) -> None:
    directory = write(root / "pirate")
    (directory / WEIGHTS_NAME).unlink()
    make(directory / WEIGHTS_NAME)
    assert refusal(directory, root).code == "not_regular"


def test_a_device_is_no_file(root: Path) -> None:
    directory = write(root / "pirate")
    (directory / WEIGHTS_NAME).unlink()
    (directory / WEIGHTS_NAME).symlink_to("/dev/zero")
    assert refusal(directory, root).code == "outside_root"
    assert refusal(directory, Path("/")).code == "not_regular"


@pytest.mark.parametrize(
    ("gone", "other", "code"),
    [
        (CONFIG_NAME, None, "missing_config"),
        (WEIGHTS_NAME, None, "missing_weights"),
        (WEIGHTS_NAME, "adapter_model.bin", "pickle_only"),
    ],
)
def test_what_is_missing_is_named(gone: str, other: str | None, code: str, root: Path) -> None:
    directory = write(root / "pirate")
    (directory / gone).unlink()
    if other:
        (directory / other).touch()
    assert refusal(directory, root).code == code
    (directory / gone).symlink_to("nowhere")
    assert refusal(directory, root).code == code
    assert refusal(root / "nowhere", root).code == "missing_config"


def test_a_part_swapped_for_a_link_after_resolving_is_not_followed(root: Path, tmp_path: Path) -> None:
    """What a race would do between the two steps, done by hand: the resolved path now leads through a link."""
    write(tmp_path / "secret" / "pirate")
    (root / "a").symlink_to(tmp_path / "secret")
    with pytest.raises(NotADirectoryError):
        _open_below(root, Path("a/pirate") / WEIGHTS_NAME)
    write(root / "b")
    (root / "b" / WEIGHTS_NAME).unlink()
    (root / "b" / WEIGHTS_NAME).symlink_to(tmp_path / "secret" / "pirate" / WEIGHTS_NAME)
    with pytest.raises(OSError, match="symbolic link"):
        _open_below(root, Path("b") / WEIGHTS_NAME)


def swap_data(mount: Path) -> None:
    """What Kubernetes does to update a volume."""
    write(mount / "..2026_01_02", b"newer")
    (mount / "..tmp").symlink_to("..2026_01_02")
    (mount / "..tmp").rename(mount / "..data")


def overwrite(mount: Path) -> None:
    (mount / "..2026_01_01" / WEIGHTS_NAME).write_bytes(b"other bytes")


def remove(mount: Path) -> None:
    (mount / CONFIG_NAME).unlink()


@pytest.mark.parametrize("change", [swap_data, overwrite, remove])
def test_a_change_while_reading_is_noticed(change: Callable[[Path], None], root: Path) -> None:
    mount = kubernetes(root)
    moved = pytest.raises(AdapterRefused, match="changed while they were read")
    with moved as caught, open_adapter_files(mount, [root]) as files:
        files[CONFIG_NAME].read()
        change(mount)
        files[WEIGHTS_NAME].read()
    assert caught.value.code == "incomplete"


def test_a_directory_is_fetched_like_any_source(root: Path, tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "data")
    directory = write(root / "pirate")
    with store.incoming() as incoming:
        assert fetch(parse_source(str(directory)), incoming, lambda done, total: None).text == str(directory)
        fetched = incoming.seal()
    with store.incoming() as incoming:
        copy_directory(kubernetes(root), incoming, [root])
        assert incoming.seal() == fetched == store.put(directory)
    (directory / WEIGHTS_NAME).unlink()
    (directory / WEIGHTS_NAME).symlink_to(root / "mount" / WEIGHTS_NAME)
    with store.incoming() as incoming, pytest.raises(AdapterRefused) as caught:
        fetch(parse_source(str(directory)), incoming, lambda done, total: None)
    assert caught.value.code == "outside_root"  # without a policy's roots, its own directory is the root
