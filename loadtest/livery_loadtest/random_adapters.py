"""Random LoRA adapters in PEFT's format, for load only: they say nothing sensible, but cost what real ones do.

Reads the shapes from a base model's safetensors headers; needs no torch and no PEFT.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

GAIN = 0.5
Array = np.ndarray[Any, np.dtype[np.float64]]

LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_random_adapters(base: Path, folder: Path, count: int, rank: int, seed: int = 0) -> dict[str, Path]:
    """Write `count` adapters of `rank` on all linear modules of `base` below `folder`; name -> directory.

    Raises ValueError when the base has none of the modules.
    """
    adapters = RandomAdapters(base, rank, seed)
    return dict(adapters.write(folder, index) for index in range(count))


class RandomAdapters:
    """Adapters of one rank for one base.

    A weight change is some 5 to 50 % of the weight it changes: enough to change every answer, too little to
    make logits numerically wild.
    """

    def __init__(self, base: Path, rank: int, seed: int = 0) -> None:
        """Raises ValueError when the base has none of the modules."""
        self._base, self._rank, self._seed = base, rank, seed
        self._shapes = dict(_linear_shapes(base))
        if not self._shapes:
            raise ValueError(f"{base} has no module named {', '.join(LINEAR_MODULES)}; give a Llama-like base")

    @property
    def size(self) -> int:
        """Bytes of the weights of one."""
        return sum(2 * self._rank * (rows + columns) for rows, columns in self._shapes.values())

    def write(self, folder: Path, index: int) -> tuple[str, Path]:
        """Its name, and its directory below `folder`; one that is there with that configuration is kept."""
        name = f"random-{index}"
        target = folder / name
        return name, _write_adapter(self._base, target, self._shapes, self._rank, [self._seed, index])


def _linear_shapes(base: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Module name -> (out, in), for the linear modules of every safetensors file of the base."""
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a mapping
                module = key.removesuffix(".weight")
                if module != key and module.rpartition(".")[2] in LINEAR_MODULES:
                    rows, columns = tensors.get_slice(key).get_shape()
                    yield module, (rows, columns)


def _write_adapter(base: Path, target: Path, shapes: dict[str, tuple[int, int]], rank: int, seed: list[int]) -> Path:
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": sorted({module.rpartition(".")[2] for module in shapes}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    text = json.dumps(config, indent=2) + "\n"
    config_file = target / "adapter_config.json"
    if config_file.is_file() and config_file.read_text() == text:
        return target
    target.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    for module, (rows, columns) in shapes.items():
        prefix = f"base_model.model.{module}"
        # B·A then has elements of about GAIN / sqrt(in), where a trained weight has some 1 to 5 / sqrt(in).
        tensors[f"{prefix}.lora_A.weight"] = rng.normal(0, 1 / np.sqrt(columns), (rank, columns))
        tensors[f"{prefix}.lora_B.weight"] = rng.normal(0, GAIN / np.sqrt(rank), (rows, rank))
    _write_bfloat16(tensors, target / "adapter_model.safetensors")
    config_file.write_text(text)  # last: a folder with a configuration is complete
    return target


def _write_bfloat16(tensors: dict[str, Array], file: Path) -> None:
    """Write a safetensors file by hand: numpy has no bfloat16, and the library's raw writer changed its form."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, values in tensors.items():
        start, end = end, end + 2 * values.size
        header[name] = {"dtype": "BF16", "shape": list(values.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            out.write(_bfloat16(values))


def _bfloat16(values: Array) -> bytes:
    """The upper half of float32, rounded to nearest, ties to even."""
    bits = values.astype(np.float32).view(np.uint32)
    return bytes(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes())
