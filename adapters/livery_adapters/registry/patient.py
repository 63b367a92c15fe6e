"""Connections to PostgreSQL that end when the server says nothing for too long; imported where psycopg is.

A server that is stopped, or behind a network that swallows everything, refuses nothing: whoever waits for it would wait
for ever, and the thread with them.
"""

from __future__ import annotations

from collections.abc import Generator
from time import monotonic
from typing import Any, TypeVar

import psycopg
from sqlalchemy import Engine, event
from sqlalchemy.exc import InvalidatePoolError

STATEMENT_S = 300.0  # longer than any statement takes, also of a migration
PING_S = 5.0  # of a connection that is taken out of the pool

T = TypeVar("T")


class PatientConnection(psycopg.Connection[Any]):
    """Waits `patience_s` for each thing that it asks, and is closed and raises OperationalError after that."""

    patience_s = STATEMENT_S

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:  # noqa: ANN401 - psycopg's own
        """Every answer of the server is waited for here, whichever method asked for it."""
        return super().wait(self._within_patience(gen), *args, **kwargs)

    def _within_patience(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """The same generator; psycopg resumes it ten times a second, with nothing where nothing came."""
        end = monotonic() + self.patience_s
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and monotonic() > end:
                    self.close()
                    raise psycopg.OperationalError(f"the server said nothing for {self.patience_s:.0f} seconds")
                wanted = gen.send(ready)
        except StopIteration as ended:
            value: T = ended.value
            return value

    def ping(self) -> None:
        """Raises psycopg.Error where the server doesn't answer soon."""
        self.patience_s = PING_S
        try:
            self.autocommit = True  # or a transaction would begin
            self.execute("SELECT 1")
            self.autocommit = False
        finally:
            self.patience_s = STATEMENT_S


def be_patient(engine: Engine) -> None:
    """Have an engine's pool make such connections, and ask each before it is used."""

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: object, _record: object, args: list[Any], options: dict[str, Any]) -> PatientConnection:
        return PatientConnection.connect(*args, **options)

    @event.listens_for(engine, "checkout")
    def ask(connection: PatientConnection, _record: object, _proxy: object) -> None:
        try:
            connection.ping()
        except psycopg.Error as error:
            raise InvalidatePoolError("the server does not answer") from error
