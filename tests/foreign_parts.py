"""Programs and packages that a test needs and this project doesn't bring."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacking(remedy: str) -> NoReturn:
    """Skip the test, with what to do about it; with CI=true fail it: green must never mean skipped."""
    if os.environ.get("CI") == "true":
        pytest.fail(remedy)
    pytest.skip(remedy)
