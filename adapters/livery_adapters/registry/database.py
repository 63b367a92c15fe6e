"""A database by path or URL: SQLite or PostgreSQL, with transactions that behave the same on both.

There is one writer at a time, across processes: a writing transaction of SQLite begins IMMEDIATE, one of
PostgreSQL takes an advisory lock first. So a writer decides by what no other writer changes meanwhile, and changes
get their numbers in the order in which they become visible. A reading transaction sees one moment.
"""

from __future__ import annotations

import importlib.util
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from livery_adapters.registry.errors import RegistryError, RegistryUnavailable, RegistryUnreadable

# How long a writer waits for the one before it.
WAIT_S = 30
CONNECT_S = 10  # how long a database server may take to answer at all
REGISTRY_LOCK = 0x6C6976657279  # "livery"

_READ_ONLY = "25006"
_REMEDY = "check that the disk has space and is writable, or that the database server runs and lets you in"
# What a PostgreSQL server may answer, by how its SQLSTATE begins, that is neither a mistake in this code nor in what
# was asked, and what the operator can do about it. psycopg has most of these as other errors than OperationalError.
_REMEDIES = {
    _READ_ONLY: "it is a standby, or became read-only by itself as its disk is full: name the server that takes "
    "changes, or give it room",
    "25": _REMEDY,
    "26": "a pooler that hands out connections by transaction loses prepared statements: have it hand them out by "
    "session, or connect without it",
    "28": _REMEDY,
    "3D": _REMEDY,
    "42501": "give the URL's user the rights to Livery's tables",
    "42P01": "the tables are not where they were: check the search_path, or restore a backup",
    "53": _REMEDY,
    "57": _REMEDY,
    "58": _REMEDY,
    "XX": "the database server's own log says what is wrong with it",
}
_REMEDIES["42P05"] = _REMEDIES["26"]


class Database:
    """Connections to one database. Any thread may use it; every call blocks."""

    def __init__(self, url: str | Path, what: str = "registry", lock: int = REGISTRY_LOCK) -> None:
        """Connects only when used. Raises RegistryError for a URL that can't be used here.

        `what` is in it, for people. `lock` is PostgreSQL's advisory lock of its writers: those of another one in the
        same database don't wait for them.
        """
        self._url = _parse(url)
        self._writers = lock
        self.where = f"{what} {self._url.render_as_string(hide_password=True)!r}"
        self._sqlite = self._url.get_backend_name() == "sqlite"
        engine = _sqlite_engine(self._url) if self._sqlite else _postgres_engine(self._url)
        self._engine = engine
        # A writer sees what the one before it committed: a snapshot would be older than the lock it waited for.
        snapshot = {} if self._sqlite else {"isolation_level": "REPEATABLE READ"}
        newest = {} if self._sqlite else {"isolation_level": "READ COMMITTED"}
        self._reader = engine.execution_options(livery_begin="BEGIN", **snapshot)
        self._writer = engine.execution_options(livery_begin="BEGIN IMMEDIATE", **newest)

    def read(self) -> AbstractContextManager[Connection]:
        """A transaction that sees one moment. Raises RegistryUnavailable, RegistryUnreadable."""
        return self._transaction(self._reader, lambda _: None)

    def write(self) -> AbstractContextManager[Connection]:
        """A transaction without other writers, on disk when it has ended. Raises as `read` does."""
        return self._transaction(self._writer, self._lock)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _transaction(self, engine: Engine, begin: Callable[[Connection], None]) -> Iterator[Connection]:
        try:
            with engine.begin() as connection:
                begin(connection)
                yield connection
        except (DBAPIError, PoolTimeout) as error:
            explained = self._explain(error)
            if explained is None:
                raise
            raise explained from error

    def _lock(self, connection: Connection) -> None:
        if not self._sqlite:
            connection.execute(text(f"SET LOCAL lock_timeout = '{WAIT_S}s'"))
            connection.execute(text(f"SELECT pg_advisory_xact_lock({self._writers})"))

    def _explain(self, error: DBAPIError | PoolTimeout) -> RegistryError | None:
        """What became of the database, for people. None for a mistake in this code."""
        reason = str(error.orig).strip() if isinstance(error, DBAPIError) else str(error)
        origin = error.orig if isinstance(error, DBAPIError) else None
        code = getattr(origin, "sqlite_errorcode", None)
        if code is not None and code & 0xFF in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return RegistryUnreadable(
                f"{self.where} is not a database or is damaged ({reason}); choose another folder, or restore a backup"
            )
        state = _state(origin)
        remedy = next((_REMEDIES[state[:length]] for length in (5, 2) if state[:length] in _REMEDIES), None)
        if remedy or isinstance(error, OperationalError | InterfaceError | PoolTimeout):
            return RegistryUnavailable(f"{self.where} can't be used now ({reason}); {remedy or _REMEDY}")
        return None


def _state(error: BaseException | None) -> str:
    """The SQLSTATE a PostgreSQL server gave with an error, "" where there is none."""
    return getattr(error, "sqlstate", None) or ""


def _parse(url: str | Path) -> URL:
    if isinstance(url, Path) or "://" not in url:
        return URL.create("sqlite", database=str(url))
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise RegistryError("the registry's URL can't be read; use a path or postgresql://user@host/name") from error
    backend = parsed.get_backend_name()
    if backend == "sqlite" and parsed.database:
        return parsed
    if backend not in ("postgresql", "postgres"):
        raise RegistryError(f"a registry can't be in {backend!r}; use a path or postgresql://user@host/name")
    if importlib.util.find_spec("psycopg") is None:
        raise RegistryError("PostgreSQL needs psycopg, which is not installed; pip install 'livery[postgres]'")
    return parsed.set(drivername="postgresql+psycopg")


def _postgres_engine(url: URL) -> Engine:
    given = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_S}
    engine = create_engine(url, connect_args=given)
    from livery_adapters.registry.patient import be_patient  # psycopg is an extra's

    be_patient(engine)
    event.listen(engine, "handle_error", _drop_read_only)
    return engine


def _drop_read_only(context: ExceptionContext) -> None:
    """Connections to a server that takes no changes are not kept: it stays so for them when it no longer is, or
    another one is the writer by then.
    """
    if _state(context.original_exception) == _READ_ONLY:
        context.is_disconnect = True  # so the pool makes all of them anew


def _sqlite_engine(url: URL) -> Engine:
    assert url.database is not None
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": WAIT_S})
    event.listen(engine, "connect", _configure)
    event.listen(engine, "begin", _begin)
    return engine


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver must begin nothing on its own
    _write_ahead(connection)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """Switch to write-ahead logging; SQLite doesn't wait by itself when another process does that just now."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            break
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    if mode != "wal":
        raise RegistryUnavailable(
            "the registry's file system has no write-ahead logging for SQLite; keep --data on a local disk"
        )


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(connection.get_execution_options().get("livery_begin", "BEGIN"))
