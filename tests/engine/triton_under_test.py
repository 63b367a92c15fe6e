"""Triton's kernels on a CPU: its interpreter runs them program by program. Skips where there is no Triton.

conftest.py chooses the interpreter. It computes bf16 wrongly, so half precision is fp16 here.
"""

from __future__ import annotations

import importlib.util
import os

import pytest

assert os.environ["TRITON_INTERPRET"] == "1"
IS_THERE = importlib.util.find_spec("triton") is not None
assert IS_THERE or os.environ.get("CI") != "true", "Triton is missing: pip install --group dev installs it on Linux"
if not IS_THERE:
    pytest.skip("no Triton on this machine: pip install triton", allow_module_level=True)
