"""In which forms a GGUF file holds its weights, and which of them the engine widens as it loads them.

    widened("model.Q4_K_M.gguf")      # a line for people, empty where nothing is

The file is converted once (models.py), all of its numbers written out. What lies on a grid that the CPU's kernels
multiply with is then held in its own bits again; blocks within blocks, as K-quants and IQ have them, are not.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

# Held in as many bits, or in the engine's own smallest (kernels/grid.py); the rest has no layout of its own.
_KEPT = frozenset({"F32", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q8_0"})


@dataclass(frozen=True, slots=True)
class Widened:
    """Tensors that are held in full precision: how many of each form, their bytes in the file, their numbers."""

    forms: Counter[str]
    nbytes: int
    numbers: int


def forms_widened(file: Path) -> Widened:
    """Raises OSError, ValueError: no GGUF file."""
    from gguf import GGUFReader  # with numpy, and a second of reading for a large vocabulary

    tensors = [tensor for tensor in GGUFReader(file).tensors if tensor.tensor_type.name not in _KEPT]
    return Widened(
        Counter(tensor.tensor_type.name for tensor in tensors),
        sum(int(tensor.n_bytes) for tensor in tensors),
        sum(int(tensor.n_elements) for tensor in tensors),
    )


def widened(model: str) -> str:
    """What to know of the GGUF file that a model's name stands for; empty for any other model."""
    file = Path(model).expanduser()
    if file.suffix != ".gguf" or not file.is_file():
        return ""
    found = forms_widened(file)
    if not found.forms:
        return ""
    forms = ", ".join(f"{count} in {form}" for form, count in sorted(found.forms.items()))
    return (
        f"{file.name} has tensors whose form nothing here multiplies with ({forms}): their "
        f"{found.nbytes / 1e6:,.0f} MB are widened and held in full precision, {4 * found.numbers / 1e6:,.0f} MB in "
        "float32 or half of that in bfloat16. A file in Q4_0, Q4_1, Q5_0 or Q8_0 is held in its own bits on a CPU; "
        "--weights int8 or int4 rounds this one"
    )
