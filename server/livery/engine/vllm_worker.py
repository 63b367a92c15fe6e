"""What Livery asks of vLLM's own processes beyond its interface: imported there, by name, as a worker extension."""

from __future__ import annotations

import os
import select
import signal
import threading
from contextlib import suppress
from functools import wraps
from typing import Any

from vllm.platforms import current_platform

_STACKS = ("lora_a_stacked", "lora_b_stacked")  # how vLLM's LoRA layers call the slots of all adapters


class LiveryWorker:
    """Methods that vLLM's workers gain; each is called between two steps, on every worker."""

    model_runner: Any

    def livery_adapters(self) -> tuple[list[int], list[int]]:
        """Ids of the adapters in device memory, and of all that are in this worker's memory."""
        manager = self._livery_manager()
        if manager is None:
            return [], []
        return [held for held in manager.lora_index_to_id if held is not None], list(manager.list_adapters())

    def livery_unapplied(self, adapter: int) -> list[str]:
        """Modules of a loaded adapter that no layer here applies: vLLM would pass them over in silence."""
        manager = self._livery_manager()
        loaded = None if manager is None else manager.list_adapters().get(adapter)
        if loaded is None:
            return []
        return sorted(set(loaded.loras) - set(manager.modules))

    def livery_release(self, adapters: list[int]) -> None:
        """Have adapters leave device memory; they stay in this worker's, and come back with their next request."""
        manager = self._livery_manager()
        for adapter in adapters if manager is not None else ():
            manager.deactivate_adapter(adapter)

    def livery_slot_bytes(self) -> int:
        """Device memory that each adapter takes here, whatever its rank: vLLM cuts it into equal slots at start."""
        manager = self._livery_manager()
        if manager is None:
            return 0
        layers = [vars(layer).items() for layer in manager.modules.values()]
        stacks = [stack for items in layers for name, stack in items if name.endswith(_STACKS)]
        tensors = [tensor for stack in stacks for tensor in (stack if isinstance(stack, tuple | list) else [stack])]
        storages = [tensor.untyped_storage() for tensor in tensors]
        held: dict[int, int] = {
            storage.data_ptr(): storage.nbytes() for storage in storages
        }  # some are views of others
        return sum(held.values()) // int(manager.lora_slots)

    def _livery_manager(self) -> Any:  # noqa: ANN401  (vLLM's)
        worker_manager = getattr(self.model_runner, "lora_manager", None)
        return getattr(worker_manager, "_adapter_manager", None)


def spare_base_rows() -> None:
    """Have vLLM's CPU kernels leave rows without an adapter alone, as its GPU kernels do.

    Such rows have index -1, with which those of 0.32 reach for the last slot: beside requests for adapters, the base
    answered by the adapter that happened to be there (https://github.com/vllm-project/vllm/pull/48421). Raises
    AttributeError or ImportError where another version has its kernels elsewhere: better no server than that.
    """
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    shrink, update = lora_ops.bgmv_shrink, punica_cpu.PunicaWrapperCPU.update_metadata
    if punica_cpu.bgmv_shrink is not shrink:
        raise AttributeError("vLLM's CPU kernels for LoRA aren't where Livery knows them; use a version that it names")
    with_base: dict[
        int, bool
    ] = {}  # by who prepares the steps of a part of the model: whether its newest has such rows

    @wraps(update)
    def look_for_base_rows(self: Any, mapping: Any, *args: Any, **named: Any) -> None:  # noqa: ANN401
        update(self, mapping, *args, **named)
        with_base[id(self)] = 0 in mapping.index_mapping or 0 in mapping.prompt_mapping

    @wraps(shrink)
    def shrink_adapted_rows(inputs: Any, weights: Any, output: Any, indices: Any, scaling: float = 1.0) -> None:  # noqa: ANN401
        shrink(inputs, weights, output, indices, scaling)
        if True in with_base.values():
            output.masked_fill_((indices < 0).unsqueeze(1), 0.0)  # what comes of zeros adds nothing

    punica_cpu.PunicaWrapperCPU.update_metadata = look_for_base_rows
    lora_ops.bgmv_shrink = punica_cpu.bgmv_shrink = shrink_adapted_rows


def end_with_server(server: int) -> None:
    """End this process as soon as the server has ended, which may have had no time to do it: it holds the memory."""

    def wait() -> None:
        with suppress(ProcessLookupError):
            ends = select.poll()
            ends.register(os.pidfd_open(server), select.POLLIN)
            ends.poll()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, name="server-watch", daemon=True).start()


# vLLM imports this in each of its workers, before that reads its weights; on other machines no server is told of.
if "LIVERY_SERVER_PID" in os.environ and hasattr(os, "pidfd_open"):
    end_with_server(int(os.environ["LIVERY_SERVER_PID"]))
if current_platform.is_cpu():
    spare_base_rows()
