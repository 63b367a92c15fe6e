"""The schema of the tenants, as revisions. See `livery_adapters.registry.migrating`.

A new schema is a new file in `versions/` (revision "0002", ...). Its version table is its own, for on PostgreSQL it
shares the registry's database.
"""

from __future__ import annotations

from pathlib import Path

from livery_adapters.registry.migrating import Migrations

MIGRATIONS = Migrations([str(Path(__file__).parent / "versions")], "livery_tenants_schema")
