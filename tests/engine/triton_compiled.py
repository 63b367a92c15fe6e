"""Compiles what the CUDA kernels launch for a Hopper GPU, on a machine without one; run as a program.

The interpreter takes much that the compiler refuses. Prints one line per launch: kernel, bytes of shared memory, and
which matrix and load instructions it came to.
"""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from livery.engine.kernels import AdapterGroup
from livery.engine.kernels.cuda import TritonKernels, attention, lora, rows
from livery.engine.kernels.tables import DeviceSegments

HOPPER = GPUTarget("cuda", 90, 32)
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.int64: "i64", torch.int32: "i32"}
SHARED_LIMIT = 227 * 1024  # bytes of shared memory that one program may have
INSTRUCTIONS = r"(wgmma\.mma_async|mma\.sync|cp\.async\.cg|ld\.global\.v4|st\.global\.v4)"


class Compiled:
    """Takes the place of a kernel: a launch compiles it for the arguments given."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.compile

    def compile(self, *arguments: Any, **named: Any) -> None:
        options = {name: named.pop(name) for name in ("num_warps", "num_stages") if name in named}
        values = dict(zip(self.kernel.arg_names, arguments, strict=False)) | named
        signature, constants, hints = {}, {}, {}
        for place, (name, parameter) in enumerate(zip(self.kernel.arg_names, self.kernel.params, strict=True)):
            value = values[name]
            if parameter.is_constexpr or (isinstance(value, int) and value == 1):
                signature[name], constants[(place,)] = "constexpr", value
                continue
            signature[name] = "*" + NAMES[value.dtype] if isinstance(value, torch.Tensor) else _scalar(value)
            if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
                hints[(place,)] = [["tt.divisibility", 16]]
        found = triton.compile(ASTSource(self.kernel, signature, constants, hints), target=HOPPER, options=options)
        counts: dict[str, int] = {}
        for instruction in re.findall(INSTRUCTIONS, found.asm["ptx"]):
            counts[instruction] = counts.get(instruction, 0) + 1
        assert found.metadata.shared <= SHARED_LIMIT, f"{self.kernel.__name__}: {found.metadata.shared} bytes"
        print(self.kernel.__name__, found.metadata.shared, counts, flush=True)


def _scalar(value: float) -> str:
    return "i32" if isinstance(value, int) else "fp32"


def replace_kernels(module: ModuleType) -> None:
    for name, value in list(vars(module).items()):
        if name.endswith("_kernel"):
            setattr(module, name, Compiled(value))


def launch_lora(rows: int, dtype: torch.dtype) -> None:
    a, b = [torch.zeros(16, 4096)] * 3, [torch.zeros(out, 16) for out in (4096, 1024, 1024)]
    group = AdapterGroup(a, b, [1.0] * 3, [0, 4096, 5120], 4096, torch.bfloat16)
    x, y = torch.zeros(rows, 4096, dtype=dtype), torch.zeros(rows, 6144, dtype=dtype)
    lora.grouped_lora(x, y, DeviceSegments.from_entries([(0, rows, group)], x.device))


def launch_attention(rows: int, dtype: torch.dtype, chunks: bool) -> None:
    cache = torch.zeros((4, 16, 8, 128), dtype=dtype)
    tables, lens = torch.zeros((rows, 64), dtype=torch.int32), torch.ones(rows, dtype=torch.int32)
    starts = torch.arange(rows + 1, dtype=torch.int32) if chunks else None
    q = torch.zeros(rows, 32, 128, dtype=dtype)
    attention.paged_attention(q, cache, cache, tables, starts, lens, 0.1, 0, 0.0, None)


def launch_rows(count: int) -> None:
    kernels, half = TritonKernels(), torch.bfloat16
    x, weight = torch.zeros(count, 4096, dtype=half), torch.zeros(4096, dtype=half)
    kernels.rms_norm(x, weight, 1e-5, x)
    heads = torch.zeros(count, 40, 128, dtype=half)
    kernels.rms_norm(heads, weight[:128], 1e-5)
    angles, slots = torch.zeros(count, 64, dtype=half), torch.zeros(count, dtype=torch.int64)
    cache = torch.zeros((4, 16, 8, 128), dtype=half)
    kernels.rope(heads[:, :24], heads[:, 24:32], heads[:, 32:], angles, angles, cache, cache, slots)
    kernels.silu_mul(torch.zeros(count, 2 * 14336, dtype=half))


def main() -> None:
    for module in (lora, attention, rows):
        replace_kernels(module)
    launch_rows(8)
    for count in (8, 512):
        launch_lora(count, torch.bfloat16)
    launch_lora(8, torch.float32)
    launch_attention(1, torch.bfloat16, False)
    launch_attention(128, torch.bfloat16, False)
    launch_attention(8, torch.bfloat16, True)
    launch_attention(8, torch.float32, False)


if __name__ == "__main__":
    main()
