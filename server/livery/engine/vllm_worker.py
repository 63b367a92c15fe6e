"""What Livery asks of vLLM's own processes beyond its interface: imported there, by name, as a worker extension."""

from __future__ import annotations

from typing import Any

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
