"""Adapters and aliases belong to tenants, who may share adapters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def _name() -> sa.Text:
    return sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    for table in ("adapters", "aliases"):
        op.add_column(table, sa.Column("owner", _name(), nullable=False, server_default="default"))
        op.create_index(f"{table}_owner", table, ["owner", "name"])
    op.create_table(
        "shares",
        sa.Column("name", _name(), sa.ForeignKey("adapters.name", ondelete="CASCADE"), nullable=False),
        sa.Column("grantee", _name(), nullable=False),
        sa.Column("since", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name", "grantee", name="shares_key"),
    )
    op.create_index("shares_grantee", "shares", ["grantee", "name"])
