"""The kernels every test runs against: what this machine gives by default, and plain torch."""

from __future__ import annotations

import os

import pytest

from livery.engine.kernels import describe, load

KERNELS = [load("auto"), load("torch")]
each_kernel = pytest.mark.parametrize("kernels", KERNELS, ids=["auto", "torch"])

IS_NATIVE = KERNELS[0].name == "native"
assert IS_NATIVE or os.environ.get("CI") != "true", f"no native kernels: {describe()}; install g++"
only_native = pytest.mark.skipif(not IS_NATIVE, reason="no native kernels on this machine")
