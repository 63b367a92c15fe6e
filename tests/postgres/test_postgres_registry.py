"""The same tests on PostgreSQL: `conftest.py` here gives them another database."""

from adapters.test_sql_registry import *  # noqa: F403
