"""The first schema: tenants and their keys. The operator's own tenant is there from the start."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _name() -> sa.Text:
    return sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def _tenant(column: str) -> sa.Column[str]:
    return sa.Column(column, _name(), sa.ForeignKey("tenants.name", ondelete="CASCADE"), nullable=False)


def upgrade() -> None:
    state = op.create_table(
        "tenancy",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("changes", sa.BigInteger, nullable=False),
        sa.Column("keyed", sa.Boolean, nullable=False),
    )
    tenants = op.create_table(
        "tenants",
        sa.Column("name", _name(), primary_key=True),
        sa.Column("weight", sa.Double, nullable=False),
        sa.Column("limits", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False),
    )
    op.create_table(
        "tenant_keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("digest", sa.Text, nullable=False),
        _tenant("tenant"),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("allow", sa.Text, nullable=False),
        sa.Column("limits", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("expires", sa.Double),
        sa.Column("revoked", sa.Double),
        sa.UniqueConstraint("digest", name="tenant_keys_digest"),
    )
    op.create_index("tenant_keys_tenant", "tenant_keys", ["tenant"])
    op.bulk_insert(state, [{"id": 1, "changes": 1, "keyed": False}])
    op.bulk_insert(
        tenants, [{"name": "default", "weight": 1.0, "limits": "{}", "created": time.time(), "disabled": False}]
    )
