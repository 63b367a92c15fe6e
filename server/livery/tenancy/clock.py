"""What time it is for all servers of one database."""

from __future__ import annotations

import time

from sqlalchemy import Connection, text


def database_clock(connection: Connection) -> float:
    """Unix time by the database's own clock, so that servers agree whose clocks differ.

    A SQLite file is one machine's, and so is its time.
    """
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one())
