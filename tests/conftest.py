"""Fixtures shared by all parts of the suite."""

from __future__ import annotations

import os

# Several pytest workers and an engine share few cores; spinning OpenMP threads would fight each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
