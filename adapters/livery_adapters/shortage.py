"""Whether something failed for lack of memory, whoever says so: Python, torch, numpy, safetensors, the system."""

from __future__ import annotations

import errno

from safetensors import SafetensorError

# In the words of torch (CPU and CUDA), of safetensors and of the system.
_WORDS = ("can't allocate", "cannot allocate", "unable to allocate", "not enough memory", "out of memory")

# What a lack of memory may come as; whoever catches these asks lacks_memory.
SHORTAGE_ERRORS = (MemoryError, RuntimeError, OSError, SafetensorError)


def lacks_memory(error: BaseException) -> bool:
    """Libraries tell it as an exception of their own, as a RuntimeError, or in words alone."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    return any(words in str(error).lower() for words in _WORDS)
