"""How large random tests are and where they start: as usual, or as the environment says.

`make chaos` sets the sizes of tests/chaos/README.md, and a seed of its own each time. Tests that draw by Hypothesis
get their seed from `--hypothesis-seed`.
"""

from __future__ import annotations

import os

SEED = int(os.environ.get("LIVERY_SEED", "0"))  # added to the tests' own


def wished(name: str, usual: int) -> int:
    """The size of that name in the environment, or the usual one."""
    return int(os.environ.get(name, usual))
