"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def _name() -> sa.Text:
    return sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "adapters",
        sa.Column("name", _name(), primary_key=True),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("active", sa.Integer),
        sa.Column("activation", sa.Integer),
        sa.Column("last_number", sa.Integer, nullable=False),
        sa.Column("retired", sa.Boolean, nullable=False),
        sa.Column("pinned", sa.Boolean, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("origin_digest", sa.Text),
        sa.Column("folder_digest", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("error_code", sa.Text),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("updated", sa.Double, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("name", _name(), sa.ForeignKey("adapters.name", ondelete="CASCADE"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("weights", sa.Text, nullable=False),
        sa.Column("approximate", sa.Integer, nullable=False),
        sa.Column("peft_type", sa.Text, nullable=False),
        sa.Column("base_digest", sa.Text, nullable=False),
        sa.Column("nbytes", sa.BigInteger, nullable=False),
        sa.Column("coverage", sa.Text, nullable=False),
        sa.Column("profile", sa.Text, nullable=False),
        sa.Column("parents", sa.Text, nullable=False),
        sa.Column("invocation", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("added", sa.Double, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("name", "number", name="versions_key"),
        sa.UniqueConstraint("name", "digest", name="versions_name_digest"),
    )
    op.create_index("versions_weights", "versions", ["weights"])
    op.create_index("versions_digest", "versions", ["digest"])
    op.create_table(
        "activations",
        sa.Column("name", _name(), sa.ForeignKey("adapters.name", ondelete="CASCADE"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("previous", sa.Integer),
        sa.Column("at", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("name", "position", name="activations_key"),
    )
    op.create_table(
        "aliases",
        sa.Column("name", _name(), primary_key=True),
        sa.Column("sticky", sa.Text, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("updated", sa.Double, nullable=False),
    )
    op.create_table(
        "alias_targets",
        sa.Column("alias", _name(), sa.ForeignKey("aliases.name", ondelete="CASCADE"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("weight", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("alias", "position", name="alias_targets_key"),
    )
    op.create_table(
        "changes",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("name", sa.Text, nullable=False),
    )
