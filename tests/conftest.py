"""Fixtures shared by all parts of the suite."""

from __future__ import annotations

import os

from hypothesis import settings

# Several pytest workers and an engine share few cores; spinning OpenMP threads would fight each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Read as Triton is first imported, which torch and its friends do as they like: kernels for CUDA run interpreted.
os.environ.setdefault("TRITON_INTERPRET", "1")

# In CI the same examples each time, so that a change is judged by what it changed; anywhere else new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI") == "true":
    settings.load_profile("ci")
