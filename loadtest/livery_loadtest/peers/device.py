"""What servers compute on in a comparison: the processor, or an NVIDIA GPU where there is one. One for all of them."""

from __future__ import annotations

from enum import StrEnum

from livery_loadtest.machine import nvidia_gpus

KV_GIB = 4  # of each server on a GPU that all of them share, where each alone would take most of it


class Device(StrEnum):
    """What --device takes; `auto` is a GPU where the driver lists one."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"

    def chosen(self) -> Device:
        """CPU or CUDA."""
        if self is not Device.AUTO:
            return self
        return Device.CUDA if nvidia_gpus() else Device.CPU

    @property
    def dtype(self) -> str:
        """The number format that servers compute in unless told otherwise, in the words of their options."""
        return "bfloat16" if self is Device.CUDA else "float32"
