"""Whether torch's own attention reads prompts is found out by calling it, here as on a device."""

from __future__ import annotations

import pytest
import torch

import engine.triton_under_test  # noqa: F401 (skips where there is no Triton)
from engine.test_kernels_attention import Paged
from livery.engine.kernels.cuda import TritonKernels, attention
from livery.engine.kernels.cuda import varlen as varlen_module
from livery.engine.kernels.cuda.varlen import Shape, probe, varlen
from livery.engine.kernels.reference import TorchKernels

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
SHAPE = Shape(heads=4, kv_heads=2, dim=16, block_size=16, dtype=torch.float16, windowed=False)


@pytest.mark.parametrize("windowed", [False, True])
def test_without_torchs_kernel_our_own_reads_prompts_and_the_reason_is_told(windowed: bool) -> None:
    shape = Shape(4, 2, 16, 16, torch.float16, windowed)
    chosen, why = probe(shape, CPU, attention.paged_attention)
    assert not chosen
    assert why.startswith("varlen_attn can't be called here: ")
    assert "CPU" in why


def test_a_kernel_that_says_something_else_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """With our own in both places nothing differs; with keys and values exchanged in one, everything does."""

    def other(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: object) -> torch.Tensor:
        return attention.paged_attention(q, v, k, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(varlen_module, "PROBE_TOKENS", 8)  # the interpreter is slow
    monkeypatch.setattr(varlen_module, "PROBE_CONTEXT", 8)
    small = Shape(2, 1, 16, 16, torch.float16, False)
    assert probe(small, CPU, other, attention.paged_attention)[1].startswith("varlen_attn differs by ")
    _, why = probe(small, CPU, attention.paged_attention, attention.paged_attention)
    assert "of our own kernel's time" in why


def test_prompts_are_right_whichever_reads_them() -> None:
    paged = Paged(3, [40, 7], 16, 2, 16, 16)
    starts = torch.tensor([0, 5, 12], dtype=torch.int32)
    q = torch.randn((12, 4, 16), generator=paged.generator).half()
    args = (q, paged.k.half(), paged.v.half(), paged.tables, starts, paged.lens, 0.25)
    found = TritonKernels().paged_attention(*args)
    expected = TorchKernels().paged_attention(q.float(), paged.k, paged.v, paged.tables, starts, paged.lens, 0.25)
    torch.testing.assert_close(found.float(), expected, atol=4e-3, rtol=4e-3)
    with pytest.raises((NotImplementedError, RuntimeError)):  # what the probe hears on a CPU
        varlen(*args, 0)
