"""Where a server listens: a TCP port or a Unix socket, with TLS or without, taken before the model is loaded."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from livery.settings import Settings, SettingsError

UDS_MODE = 0o600  # the server's own user; a proxy of another user gets in through the folder's group


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of a certificate chain and its key, in PEM."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class UnixFile:
    """The file of a Unix socket, known again by what no change of its mode or owner touches."""

    path: Path
    identity: tuple[int, int, int]

    @classmethod
    def at(cls, path: Path) -> UnixFile:
        return cls(path, _identity(path.lstat()))

    def remove(self) -> None:
        try:
            found = _identity(self.path.lstat())
        except FileNotFoundError:
            return
        if found == self.identity:
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket and what clients call it. `url` has no path; a Unix socket is at `uds`, and `file` is its file
    where that is this process's to remove.

    It listens before anybody accepts: only a socket that listens keeps others from the address, so a second server
    fails at once and not after it has loaded its model. Clients that come meanwhile wait.
    """

    socket: socket.socket
    url: str
    tls: Tls | None
    uds: Path | None = None
    file: UnixFile | None = None

    def close(self) -> None:
        """Give the address back; a file that somebody else has put in place of this one's stays."""
        if self.file is not None:
            self.file.remove()
        self.socket.close()


def listen(settings: Settings) -> Listener:
    """Take the address of the settings. Raises SettingsError."""
    return _listen(settings, settings.host, settings.port, settings.uds, "")


def listen_for_admins(settings: Settings) -> Listener | None:
    """Take the admin API's address, None where there is to be none. Raises SettingsError."""
    if settings.admin_port is None and settings.admin_uds is None:
        return None
    return _listen(settings, settings.admin_host, settings.admin_port or 0, settings.admin_uds, "admin-")


def inherited(settings: Settings, descriptor: int) -> Listener:
    """What another process listens on by the same settings, as its child has it; a socket's file is that process's."""
    bound = socket.socket(fileno=descriptor)
    bound.set_inheritable(False)
    tls = _tls(settings)
    if bound.family == socket.AF_UNIX:
        return Listener(bound, "http://localhost", tls, Path(bound.getsockname()))
    return Listener(bound, _url(bound, tls), tls)


def _listen(settings: Settings, host: str, port: int, uds: Path | None, of: str) -> Listener:
    """`of` is how the flags begin that the address was given with."""
    tls = _tls(settings)
    if uds is not None:
        bound, file = _bind_unix(uds, of)
        return Listener(bound, "http://localhost", tls, uds, file)
    bound = _bind(host, port, of)
    return Listener(bound, _url(bound, tls), tls)


def _url(bound: socket.socket, tls: Tls | None) -> str:
    host, port = bound.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{_authority(host, port)}"


def _tls(settings: Settings) -> Tls | None:
    certificate, key = settings.ssl_certfile, settings.ssl_keyfile
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise SettingsError("TLS needs both --ssl-certfile and --ssl-keyfile; give the other one too")
    try:
        # Read now, so that a wrong file shows before the model is loaded.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"--ssl-certfile {certificate} and --ssl-keyfile {key} can't be used ({error.strerror or error}); "
            "both must be PEM files, readable and of one pair, the key without a passphrase"
        ) from None
    return Tls(certificate, key)


def _bind(host: str, port: int, of: str) -> socket.socket:
    listener = None
    try:
        # Without its protocol the loop would not turn off Nagle's algorithm: 40 ms more on every kept connection.
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _notice_the_gone(listener)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        if listener is not None:
            listener.close()
        raise SettingsError(
            f"can't listen on --{of}host {host} --{of}port {port}: {error.strerror}; choose another port, or 0 for a "
            "free one"
        ) from None
    return listener


def _notice_the_gone(listener: socket.socket) -> None:
    """Have the system ask of silent peers whether they are there: one that lost its power sends no end.

    Accepted sockets inherit it. The first question comes after a minute, the last of four a minute later.
    """
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):  # not every system lets one choose
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _bind_unix(path: Path, of: str) -> tuple[socket.socket, UnixFile]:
    _drop_stale(path, of)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(UDS_MODE)
        listener.listen()
        file = UnixFile.at(path)
    except OSError as error:
        listener.close()
        raise SettingsError(
            f"can't listen on --{of}uds {path}: {error.strerror or error}; its folder must exist and be writable, and "
            "the path shorter than about 100 bytes"
        ) from None
    return listener, file


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    """Device and inode, which may be given out again, and when it was made: nothing writes to such a file."""
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _drop_stale(path: Path, of: str) -> None:
    """Remove the socket that a killed server left; never one that somebody answers on, and no other file."""
    try:
        kind = path.lstat().st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(kind):
        raise SettingsError(f"--{of}uds {path} is there already and is no socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a server that is loading accepts nobody: where many wait, this would too
        found = probe.connect_ex(str(path))
    if found not in (errno.ECONNREFUSED, errno.ENOENT):
        raise SettingsError(f"--{of}uds {path} is in use by another server; stop that one or choose another path")
    path.unlink(missing_ok=True)


def _authority(host: str, port: int) -> str:
    """Host and port as they stand in a URL; where all addresses are listened on, that of this machine."""
    ip = ipaddress.ip_address(host)
    if ip.is_unspecified:
        host = "127.0.0.1" if ip.version == 4 else "::1"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
