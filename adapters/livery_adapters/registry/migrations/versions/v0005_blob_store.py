"""Where the adapter files of a registry's versions are, if its servers share them: whoever adds one puts them there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("identity", sa.Column("blob_store", sa.Text))
