"""The tests of what was used, on PostgreSQL: `conftest.py` here gives them another database."""

from tenancy.test_meter import *  # noqa: F403
