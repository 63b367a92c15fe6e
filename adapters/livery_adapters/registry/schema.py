"""The tables. What the migrations make is compared with these by a test.

One writer at a time (see database.py), so numbers are counted here rather than by sequences: data moves between
databases as it is.
"""

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

from livery_adapters.names import OPERATOR_TENANT

metadata = MetaData()


def _name() -> Text:
    """Names sort by their bytes everywhere."""
    return Text().with_variant(Text(collation="C"), "postgresql")


adapters = Table(
    "adapters",
    metadata,
    Column("name", _name(), primary_key=True),
    Column("generation", BigInteger, nullable=False),
    Column("active", Integer),  # number of a version of this name
    Column("activation", Integer),  # position in `activations` of how it became active
    Column("last_number", Integer, nullable=False),
    Column("retired", Boolean, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("source", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("origin_digest", Text),
    Column("folder_digest", Text),  # what the folder last gave, whoever gave something since
    Column("error", Text),
    Column("error_code", Text),
    Column("created", Double, nullable=False),
    Column("updated", Double, nullable=False),
    Column("owner", _name(), nullable=False, server_default=OPERATOR_TENANT),  # a tenant
    Column(
        "follower", Text
    ),  # whose folder gave `folder_digest`, or was refused here; NULL: given before there was this
    Index("adapters_owner", "owner", "name"),
)

versions = Table(
    "versions",
    metadata,
    Column("name", _name(), ForeignKey("adapters.name", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("digest", Text, nullable=False),
    Column("weights", Text, nullable=False),
    Column("approximate", Integer, nullable=False),
    Column("peft_type", Text, nullable=False),
    Column("base_digest", Text, nullable=False),
    Column("nbytes", BigInteger, nullable=False),
    Column("coverage", Text, nullable=False),  # JSON, as are the next three
    Column("profile", Text, nullable=False),
    Column("parents", Text, nullable=False),
    Column("invocation", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("added", Double, nullable=False),
    Column("state", Text, nullable=False),
    PrimaryKeyConstraint("name", "number", name="versions_key"),
    UniqueConstraint("name", "digest", name="versions_name_digest"),
    Index("versions_weights", "weights"),
    Index("versions_digest", "digest"),
)

# What was active, in order. `previous` is what a rollback goes back to, so rolling back twice goes back two steps.
activations = Table(
    "activations",
    metadata,
    Column("name", _name(), ForeignKey("adapters.name", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("digest", Text, nullable=False),
    Column("previous", Integer),
    Column("at", Double, nullable=False),
    PrimaryKeyConstraint("name", "position", name="activations_key"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("name", _name(), primary_key=True),
    Column("sticky", Text, nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("updated", Double, nullable=False),
    Column("owner", _name(), nullable=False, server_default=OPERATOR_TENANT),
    Index("aliases_owner", "owner", "name"),
)

alias_targets = Table(
    "alias_targets",
    metadata,
    Column("alias", _name(), ForeignKey("aliases.name", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("target", Text, nullable=False),
    Column("weight", Double, nullable=False),
    PrimaryKeyConstraint("alias", "position", name="alias_targets_key"),
)

# Which tenants may use an adapter that another one owns.
shares = Table(
    "shares",
    metadata,
    Column("name", _name(), ForeignKey("adapters.name", ondelete="CASCADE"), nullable=False),
    Column("grantee", _name(), nullable=False),
    Column("since", Double, nullable=False),
    PrimaryKeyConstraint("name", "grantee", name="shares_key"),
    Index("shares_grantee", "grantee", "name"),
)

changes = Table(
    "changes",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
)

# Which registry this is, for what it shares with others: one row, from the first time that anybody asks.
identity = Table(
    "identity",
    metadata,
    Column("id", Text, primary_key=True),
    Column("blob_store", Text),  # the URL of the object store in which its servers share adapter files
)
