"""Versions without files, for what only moves them about: the registry never looks inside."""

from __future__ import annotations

import hashlib
from pathlib import Path

from livery_adapters.coverage import CoverageReport
from livery_adapters.layout import AdapterManifest
from livery_adapters.registry import AdapterVersion


def version(label: str, *, digest: str | None = None) -> AdapterVersion:
    digest = digest or hashlib.sha256(label.encode()).hexdigest()
    manifest = AdapterManifest(digest, "LORA", None, (), (), (), 0, False, {})
    report = CoverageReport(digest, "base", "LORA", 0, {}, (), (), 0, ())
    return AdapterVersion(digest, manifest, report, Path(label), 0.0)
