"""The same tests on PostgreSQL: `conftest.py` here gives them another database."""

from adapters.test_sql_schema import *  # noqa: F403
