"""Which registry a database holds: an object store's prefix is one registry's, and says whose."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table("identity", sa.Column("id", sa.Text, primary_key=True))
