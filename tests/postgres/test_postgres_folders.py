"""The same tests on PostgreSQL: `conftest.py` here gives them another database."""

from adapters.test_sources_followers import *  # noqa: F403
