"""What an engine computes with on GPUs of several kinds, and what it says of those that can't; no GPU is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from triton.runtime.errors import OutOfResources

from engine.families import save
from livery.engine import runner
from livery.engine.base import EngineConfig, ModelRefused
from livery.engine.devices import choose
from livery.engine.runner import ModelRunner

GPUs = Callable[[int, tuple[int, int]], None]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> GPUs:
    """Lets torch say that there are so many GPUs of this compute capability."""

    def found(count: int, capability: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return found


@pytest.mark.parametrize(("count", "said"), [(1, "cuda:0 only"), (2, "cuda:0 to cuda:1 only")])
def test_a_gpu_beyond_the_last_is_refused_by_name(gpus: GPUs, count: int, said: str) -> None:
    gpus(count, (9, 0))
    assert choose(EngineConfig("model", device=f"cuda:{count - 1}")).device == torch.device("cuda", count - 1)
    with pytest.raises(ModelRefused, match=f"'cuda:{count}' .*{said}"):
        choose(EngineConfig("model", device=f"cuda:{count}"))


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((12, 0), "bfloat16")])
def test_a_gpu_without_bfloat16_computes_in_float32(gpus: GPUs, capability: tuple[int, int], dtype: str) -> None:
    gpus(1, capability)
    chosen = choose(EngineConfig("model"))
    assert chosen.dtype_name == dtype
    assert ("7.5" in chosen.why_dtype) == (capability == (7, 5))
    assert choose(EngineConfig("model", dtype="bfloat16")).dtype_name == "bfloat16", "asked for, so done"


def test_without_a_c_compiler_a_gpu_computes_with_torchs_kernels(
    gpus: GPUs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(1, (9, 0))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    chosen = choose(EngineConfig("model"))
    assert chosen.kernels == "torch"
    assert "C compiler" in chosen.why_kernels
    monkeypatch.setenv("CC", "/opt/cc")
    assert choose(EngineConfig("model")).kernels == "triton"


def raising(error: Exception) -> Callable[..., NoReturn]:
    def fail(*_: object) -> NoReturn:
        raise error

    return fail


@pytest.mark.parametrize("stage", ["load_model", "plan_memory"])
def test_a_base_too_big_for_its_gpu_is_refused_with_what_helps(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore advice.")
    monkeypatch.setattr(runner, stage, raising(error))
    config = EngineConfig(str(save("llama", tmp_path)), threads=1, kv_memory_bytes=1 << 20)
    with pytest.raises(ModelRefused, match=r"lower --kv-memory, .*--quantization bnb-nf4.* 2\.00 GiB\.$") as refused:
        ModelRunner(config, lambda _: None)
    assert str(refused.value).startswith("llama doesn't fit")


def test_kernels_that_a_gpu_has_no_room_for_are_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "prepare", raising(OutOfResources(232448, 101376, "shared memory")))
    with pytest.raises(ModelRefused, match=r"shared memory.*--kernels torch"):
        ModelRunner(EngineConfig(str(save("llama", tmp_path)), threads=1), lambda _: None)
