"""Adapters that a folder gave say whose: servers of one registry may follow a folder each.

Whose the rows of before are can't be told here: each follower claims those that its folder still has as they were.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("adapters", sa.Column("follower", sa.Text))
