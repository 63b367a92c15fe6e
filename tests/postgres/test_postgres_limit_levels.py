"""The tests of limits over several servers, on PostgreSQL: `conftest.py` here gives them another database."""

from tenancy.test_limit_levels import *  # noqa: F403
