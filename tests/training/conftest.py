"""The command line, called in this process; and what real training needs is in an environment of its own."""

from __future__ import annotations

import importlib.util

from cli.conftest import livery

__all__ = ["livery"]

LIBRARIES = ("bitsandbytes", "datasets", "torchao", "trl")
OF_LIBRARIES = ["test_trained_demo.py", "test_trained_quantised.py", "test_trained_runs.py"]
collect_ignore = [] if all(importlib.util.find_spec(name) for name in LIBRARIES) else OF_LIBRARIES
