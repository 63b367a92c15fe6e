"""What the tests of quantised bases need is in an environment of its own: make test-quantization has it."""

from __future__ import annotations

import importlib.util

LIBRARIES = ("bitsandbytes", "compressed_tensors", "torchao")
OF_LIBRARIES = ["test_quantized_checkpoints.py", "test_quantized_parity.py", "test_served_quantised.py"]
collect_ignore = [] if all(importlib.util.find_spec(name) for name in LIBRARIES) else OF_LIBRARIES
