"""How a process of Livery begins."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import much at once: what is imported stays, so looking through it for garbage is time lost, a sixth of all.

    Collections that come later pass it over too (gc.freeze).
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()
