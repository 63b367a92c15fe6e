"""The tables. What the migrations make is compared with these by a test."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()


def _name() -> Text:
    """Names sort by their bytes everywhere."""
    return Text().with_variant(Text(collation="C"), "postgresql")


# One row. `changes` grows by one with each change of the two tables below, so that whoever keeps them in memory sees
# that there was one. `keyed`: a key was made at some time, so that one is asked for, even when none is left.
state = Table(
    "tenancy",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("changes", BigInteger, nullable=False),
    Column("keyed", Boolean, nullable=False),
)

tenants = Table(
    "tenants",
    metadata,
    Column("name", _name(), primary_key=True),
    Column("weight", Double, nullable=False),
    Column("limits", Text, nullable=False),  # JSON
    Column("created", Double, nullable=False),
    Column("disabled", Boolean, nullable=False),
)

keys = Table(
    "tenant_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("digest", Text, nullable=False),  # SHA-256 of the key in hex; the key itself is nowhere
    Column("tenant", _name(), ForeignKey("tenants.name", ondelete="CASCADE"), nullable=False),
    Column("role", Text, nullable=False),
    Column("allow", Text, nullable=False),  # JSON, as is the next
    Column("limits", Text, nullable=False),
    Column("label", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("expires", Double),
    Column("revoked", Double),
    UniqueConstraint("digest", name="tenant_keys_digest"),
    Index("tenant_keys_tenant", "tenant"),
)

# What was used, added up by servers as it comes.
usage = Table(
    "usage",
    metadata,
    Column("hour", BigInteger, nullable=False),  # since 1970, UTC
    Column("tenant", _name(), nullable=False),
    Column("key_id", _name(), nullable=False),
    Column("adapter", _name(), nullable=False),
    Column("digest", _name(), nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    PrimaryKeyConstraint("hour", "tenant", "key_id", "adapter", "digest", name="usage_key"),
)

# What each run of a server added last, so that the same is never added twice.
flushes = Table(
    "usage_flushes",
    metadata,
    Column("server", Text, primary_key=True),
    Column("number", BigInteger, nullable=False),  # of the last flush that was added
    Column("at", Double, nullable=False),  # Unix time
)

# How much of a minute is used by all servers together, leaking since `at`.
levels = Table(
    "limit_levels",
    metadata,
    Column("kind", Text, nullable=False),  # key or tenant
    Column("name", _name(), nullable=False),
    Column("requests", Double, nullable=False),
    Column("tokens", Double, nullable=False),
    Column("at", Double, nullable=False),  # Unix time, of the database's clock
    PrimaryKeyConstraint("kind", "name", name="limit_levels_key"),
)
