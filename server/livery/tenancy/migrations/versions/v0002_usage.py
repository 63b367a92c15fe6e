"""What was used, by hour, tenant, key and adapter version; and which flush of each server was added last."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def _name(column: str) -> sa.Column[str]:
    return sa.Column(column, sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False)


def _count(column: str) -> sa.Column[int]:
    return sa.Column(column, sa.BigInteger, nullable=False)


def upgrade() -> None:
    op.create_table(
        "usage",
        _count("hour"),
        _name("tenant"),
        _name("key_id"),
        _name("adapter"),
        _name("digest"),
        _count("requests"),
        _count("prompt_tokens"),
        _count("cached_tokens"),
        _count("completion_tokens"),
        sa.PrimaryKeyConstraint("hour", "tenant", "key_id", "adapter", "digest", name="usage_key"),
    )
    op.create_table(
        "usage_flushes",
        sa.Column("server", sa.Text, primary_key=True),
        _count("number"),
        sa.Column("at", sa.Double, nullable=False),
    )
