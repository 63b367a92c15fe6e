"""The engine's own compute kernels and the choice between the native ones and plain torch.

`load()` gives an object with the kernels; `describe()` says which are used and why. Knows no model and no
batch.
"""

from __future__ import annotations

import functools
from subprocess import CalledProcessError
from typing import Literal, Protocol

import torch
from torch import Tensor

from livery.engine.compiler import BuildFailed
from livery.engine.kernels.build import Library, build
from livery.engine.kernels.group import AdapterGroup, GroupSegments
from livery.engine.kernels.library import LibraryLinear, LibraryWeight
from livery.engine.kernels.measure import NativeSums
from livery.engine.kernels.native import NativeKernels
from livery.engine.kernels.reference import TorchKernels
from livery.engine.kernels.weights import LAYOUTS, GridWeight, Layout, PackedWeight, PlainWeight, Weight
from livery_adapters.sums import Sums, TorchSums

__all__ = [
    "LAYOUTS",
    "AdapterGroup",
    "GridWeight",
    "GroupSegments",
    "Kernels",
    "Layout",
    "LibraryLinear",
    "LibraryWeight",
    "PackedWeight",
    "PlainWeight",
    "Weight",
    "describe",
    "load",
    "load_sums",
    "not_compiled",
    "use_threads_here",
]


class Kernels(Protocol):
    """What native.py and reference.py both offer; shapes and meaning are documented in reference.py."""

    @property
    def name(self) -> str: ...

    @property
    def reads_tables(self) -> bool:
        """Whether `grouped_lora` is best told a step's segments by a table on the device (tables.py)."""
        ...

    def grouped_lora(self, x: Tensor, y: Tensor, segments: GroupSegments) -> None: ...

    def paged_attention(
        self,
        q: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables: Tensor,
        query_starts: Tensor | None,
        context_lens: Tensor,
        scale: float,
        window: int = 0,
        softcap: float = 0.0,
        out: Tensor | None = None,
    ) -> Tensor: ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor: ...

    def rope(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        slots: Tensor,
    ) -> None: ...

    def silu_mul(self, gate_up: Tensor) -> Tensor: ...

    def pack(self, weight: Tensor, layout: Layout | Literal["exact"] = "fp32") -> Weight: ...

    def linear(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor: ...


KernelMode = Literal["auto", "torch", "triton"]


def load(mode: KernelMode = "auto") -> Kernels:
    """The kernels to compute with: plain torch operations on request and wherever native code can't be had.

    The first call on a machine compiles, which takes seconds. "auto" and "torch" never raise: `describe()` has the
    reason. "triton", for CUDA devices, raises ImportError where Triton is missing.
    """
    if mode == "torch":
        return TorchKernels()
    if mode == "triton":
        from livery.engine.kernels.cuda import TritonKernels

        return TritonKernels()
    kernels, _ = _native()
    return kernels if isinstance(kernels, NativeKernels) else TorchKernels()


def not_compiled() -> tuple[type[Exception], ...]:
    """What Triton raises where it can't compile a kernel: no compiler for its launchers, too little shared memory."""
    try:
        from triton.errors import TritonError
    except ImportError:
        return ()
    return TritonError, CalledProcessError


def load_sums(mode: KernelMode = "auto") -> Sums:
    """What adapters are measured with on the host, whatever computes the steps: native unless torch is asked for."""
    return (None if mode == "torch" else _native_sums()) or TorchSums()


def use_threads_here(count: int) -> None:
    """How many threads whatever the calling thread starts may use from now on, torch's work included.

    Other threads keep theirs. Does nothing where there are no native kernels.
    """
    if (native := _native_sums()) is not None:
        torch.get_num_threads()  # sets the number up for this thread the first time, over whatever it was
        native.use_threads(count)


def describe() -> dict[str, str]:
    """Which kernels `load("auto")` gives here and why, as label -> text. Compiles them if need be."""
    kernels, library = _native()
    if isinstance(kernels, NativeKernels):
        return {
            "kernels": "native",
            "compiler": library.compiler if library else "",
            "flags": library.flags if library else "",
            "library": str(library.path) if library else "",
        }
    return {"kernels": "torch", "reason": kernels}


@functools.cache
def _native_sums() -> NativeSums | None:
    """Of the same library as the native kernels, where there is one; once per process."""
    _, library = _native()
    return NativeSums(library.path) if library is not None else None


@functools.cache
def _native() -> tuple[NativeKernels | str, Library | None]:
    """The native kernels, or why there are none; once per process."""
    try:
        library = build()
        return NativeKernels(library.path), library
    except BuildFailed as error:
        return str(error), None
    except OSError as error:
        return f"the compiled kernels can't be loaded: {error}; delete that file to compile them again", None
