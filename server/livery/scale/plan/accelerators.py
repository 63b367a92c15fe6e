"""What computes: a GPU's memory, bandwidth and arithmetic, from the shipped table or from a file; or this machine."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from livery.bench.physics import Peak
from livery.scale.plan.refusal import PlanRefused, nearest
from livery_loadtest.checked import SpecInvalid, convert, load_yaml

Positive = Annotated[float, Meta(gt=0, le=1e9)]
GB = 1e9
SUFFIXES = (".yaml", ".yml")


class Accelerator(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One device. Bytes in 10^9, operations in 10^12 a second (a multiply-add is two), of the type that it computes in.

    `link_gb_s` is to its fellows in the machine, both directions together; `host_gb_s` from host memory, one direction.
    On a CPU all memory is the host's.
    """

    memory_gb: Positive
    bandwidth_gb_s: Positive
    tflops: Positive
    link_gb_s: Positive = 64.0
    host_gb_s: Positive = 32.0
    source: str = ""
    name: str = ""
    kind: Literal["gpu", "cpu"] = "gpu"

    @property
    def memory_bytes(self) -> float:
        return self.memory_gb * GB

    @property
    def peak(self) -> Peak:
        return Peak(self.bandwidth_gb_s * GB, self.tflops * 1e12)


@cache
def known_accelerators() -> dict[str, Accelerator]:
    """The shipped table, by name."""
    text = (files("livery.scale.plan") / "data" / "gpus.yaml").read_text(encoding="utf-8")
    table = msgspec.convert(load_yaml(text, "gpus.yaml"), dict[str, Accelerator])
    return {name: msgspec.structs.replace(one, name=name) for name, one in table.items()}


def accelerator(name: str) -> Accelerator:
    """The one of that name, or of a YAML file with an Accelerator's fields. Raises PlanRefused."""
    if name.lower().endswith(SUFFIXES):
        return _from_file(Path(name))
    found = known_accelerators().get(name.lower())
    if found is None:
        remedy = nearest(name, [*known_accelerators(), "cpu"])
        raise PlanRefused(f"--gpu {name}: unknown; {remedy} Or give its numbers in a YAML file: --gpu mine.yaml")
    return found


def _from_file(path: Path) -> Accelerator:
    try:
        text = path.read_text(encoding="utf-8")
        found = convert(load_yaml(text, f"--gpu {path}"), Accelerator, f"--gpu {path}", {})
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise PlanRefused(f"--gpu {path}: {why}; name a YAML file with memory_gb, bandwidth_gb_s and tflops") from error
    except SpecInvalid as error:
        fields = ", ".join(Accelerator.__struct_fields__)
        raise PlanRefused(f"{error}; a GPU's fields are {fields}") from error
    return msgspec.structs.replace(found, name=found.name or path.stem)
