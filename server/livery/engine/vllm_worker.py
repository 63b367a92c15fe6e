"""What Livery asks of vLLM's own processes beyond its interface: imported there, by name, as a worker extension."""

from __future__ import annotations

from typing import Any


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

    def _livery_manager(self) -> Any:  # noqa: ANN401  (vLLM's)
        worker_manager = getattr(self.model_runner, "lora_manager", None)
        return getattr(worker_manager, "_adapter_manager", None)
