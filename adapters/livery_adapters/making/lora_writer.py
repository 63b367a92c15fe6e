"""A plain LoRA adapter written as PEFT writes one, a module at a time, so that it never lies in memory whole."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

import torch
from torch import Tensor

from livery_adapters.layout import Task
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tasks import type_of
from livery_adapters.tensor_file import CONFIG_NAME, WEIGHTS_NAME

ITEMSIZE = 4  # bytes; all is written in fp32
_NONE = "dummy-target-modules"
_HALVES = {
    "linear": ("lora_A.weight", "lora_B.weight"),
    "embedding": ("lora_embedding_A", "lora_embedding_B"),
    "experts": ("lora_A.weight", "lora_B.weight"),
}


@dataclass(frozen=True, slots=True)
class Target:
    """One adapted module, or one parameter that holds all experts' weights (`path` is then the parameter's)."""

    path: str
    kind: Literal["linear", "embedding", "experts"]
    rank: int
    in_features: int
    out_features: int
    experts: int = 1


class LoraWriter:
    """Writes adapter_config.json and adapter_model.safetensors (fp32, scale 1: alpha is the rank of each module).

        with LoraWriter(out, targets, base_name="org/model", metadata={}) as writer:
            for target in targets:
                writer.write(a, b)      # in the order of `targets`

    `out` appears whole at the end, or not at all. Raises AdapterRefused (output_exists) if something is there.
    """

    def __init__(
        self,
        out: Path,
        targets: Sequence[Target],
        *,
        base_name: str | None,
        input_first: bool,
        metadata: Mapping[str, str],
        task: Task = "generate",
    ) -> None:
        out = Path(os.path.abspath(out))  # what is relative may have no name, as `.` hasn't
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise AdapterRefused(
                "output_exists", f"there is something at {out} already; name a new directory or remove it"
            )
        self._out = out
        self._config = lora_config(targets, base_name, input_first, task)
        self._shapes = [shape for target in targets for shape in shapes_of(target)]
        self._header = _header(_names(targets), self._shapes, metadata)
        self._targets = iter(targets)
        self._incoming = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
        self._stream: BinaryIO

    def __enter__(self) -> Self:
        self._incoming.mkdir(parents=True)
        (self._incoming / CONFIG_NAME).write_text(json.dumps(self._config, indent=2, sort_keys=True) + "\n")
        self._stream = (self._incoming / WEIGHTS_NAME).open("wb")
        self._stream.write(self._header)
        return self

    def write(self, a: Tensor, b: Tensor) -> None:
        """The next target's halves: [rank, in] and [out, rank], for experts [experts, rank, in] and so on."""
        target = next(self._targets)
        if target.kind == "experts":  # PEFT has A by expert and then rank, B by rank and then expert
            a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
        for tensor, shape in zip((a, b), shapes_of(target), strict=True):
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{target.path} was planned as {shape} and is {tuple(tensor.shape)}")
            self._stream.write(tensor.to("cpu", torch.float32).contiguous().numpy().data)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if next(self._targets, None) is not None:
                    raise ValueError("not all targets were written")
                self._stream.flush()
                os.fsync(self._stream.fileno())
            self._stream.close()
            if kind is None:
                self._incoming.rename(self._out)
        finally:
            self._stream.close()
            shutil.rmtree(self._incoming, ignore_errors=True)


def lora_config(
    targets: Sequence[Target], base_name: str | None, input_first: bool, task: Task = "generate"
) -> dict[str, object]:
    """adapter_config.json: every module by its full path, and its rank and alpha where they aren't the usual ones.

    Without a target there is PEFT's word for none (an empty list would be refused), for files that hold other things.
    """
    usual = Counter(target.rank for target in targets).most_common(1)[0][0] if targets else 1
    # Anchored and with its dots escaped, as PEFT reads the keys as patterns that may match the end of a path.
    others = {"^" + target.path.replace(".", r"\."): target.rank for target in targets if target.rank != usual}
    parameters = sorted(target.path for target in targets if target.kind == "experts")
    return {
        "peft_type": "LORA",
        "task_type": type_of(task),
        "base_model_name_or_path": base_name,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(target.path for target in targets if target.kind != "experts")
        or ([] if parameters else _NONE),
        "target_parameters": parameters or None,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": input_first,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _names(targets: Sequence[Target]) -> list[str]:
    """The tensors' names in the file. PEFT wraps a module once per parameter: all but the last lie further inside."""
    by_module: dict[str, list[str]] = {}
    for target in targets:
        if target.kind == "experts":
            by_module.setdefault(target.path.rpartition(".")[0], []).append(target.path)
    places = {target.path: target.path for target in targets}
    for module, paths in by_module.items():
        # In the order in which modules define them: the projection to the inside, then the one back.
        ordered = sorted(paths, key=lambda path: ("down" in path.rpartition(".")[2] or path.endswith("w2"), path))
        for depth, path in enumerate(reversed(ordered)):
            places[path] = module + ".base_layer" * depth
    return [f"base_model.model.{places[target.path]}.{half}" for target in targets for half in _HALVES[target.kind]]


def shapes_of(target: Target) -> tuple[tuple[int, int], tuple[int, int]]:
    """Of its two halves as they are written."""
    stacked = target.rank * target.experts
    return (stacked, target.in_features), (target.out_features, stacked)


def _header(names: Sequence[str], shapes: Sequence[tuple[int, int]], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    position = 0
    for name, shape in zip(names, shapes, strict=True):
        end = position + ITEMSIZE * shape[0] * shape[1]
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    data = json.dumps(entries).encode()
    data += b" " * (-len(data) % 8)  # the tensors begin aligned
    return len(data).to_bytes(8, "little") + data
