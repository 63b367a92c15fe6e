"""The same tests on PostgreSQL: `conftest.py` here gives them another database."""

from tenancy.test_key_ring import *  # noqa: F403
from tenancy.test_tenant_store import *  # noqa: F403
