"""Where weights, keys and values, and adapters lie: device, host and disk of one replica."""

from __future__ import annotations

from dataclasses import dataclass

from livery.scale.plan.accelerators import known_accelerators
from livery.scale.plan.question import Question
from livery.scale.plan.refusal import PlanRefused
from livery.scale.plan.shapes import DTYPES, HeldModel, held_model

GPUS = (1, 2, 4, 8)  # that share one model
# What the engine takes where nothing is said (livery.engine.memory): of what weights leave on a GPU 15 % stay free for
# activations and adapters take 20 % at most; on a CPU keys and values take a quarter up to 1 GiB, adapters half of
# that, and a tenth of the rest is for adapters that aren't in use.
SLACK_SHARE, ADAPTER_SHARE = 0.15, 0.2
CPU_KV_SHARE, CPU_KV_MOST, CPU_ADAPTER_SHARE, CPU_HOST_SHARE = 0.25, 2.0**30, 0.5, 0.1


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one replica, which is `gpus` devices. `slots` adapters fit the device, `host_slots` the host."""

    gpus: int
    held: HeldModel
    device: float
    weights: float
    slack: float
    kv: float
    adapters: float  # set aside on the device
    adapter: float  # one
    host: float  # of adapters in host memory
    disk: float  # of all adapters
    kv_token: float
    slots: int
    host_slots: int

    @property
    def kv_tokens(self) -> int:
        return int(self.kv // self.kv_token)


def divide(question: Question) -> list[Memory]:
    """The numbers of GPUs that hold the model, one sequence and one adapter, fewest first, and what lies where on them.

    There is one at least. Raises PlanRefused where 8 don't hold it, those that were asked for don't or can't share its
    heads, or the memory asked for adapters is too little for one or too much.
    """
    itemsize = DTYPES[question.dtype]
    kv_itemsize = DTYPES[question.kv_dtype or question.dtype]
    adapter_itemsize = DTYPES[question.adapter_dtype]
    held = held_model(question.model, question.weights, itemsize, kv_itemsize, question.targets, adapter_itemsize)
    adapter = float(held.base.adapter_bytes(question.rank))
    if question.adapter_memory and question.adapter_memory < adapter:
        raise PlanRefused(
            f"--adapter-memory {question.adapter_memory / 1e9:g} GB: one adapter of rank {question.rank} takes "
            f"{adapter / 1e9:.3g}; raise it"
        )
    shares = [gpus for gpus in GPUS if question.model.num_attention_heads % gpus == 0]
    if question.gpu.kind == "cpu":
        shares = shares[:1]
    if question.tensor_parallel:
        shares = [gpus for gpus in shares if gpus == question.tensor_parallel]
    if not shares:
        raise PlanRefused(
            f"--tensor-parallel {question.tensor_parallel}: {question.model.name} has "
            f"{question.model.num_attention_heads} heads, which {', '.join(map(str, GPUS))} GPUs share where they can "
            "be divided by it"
        )
    found = [memory for gpus in shares if (memory := _on(gpus, question, held, adapter)) is not None]
    if not found:
        raise PlanRefused(_too_large(question, held, shares[-1]))
    return found


def _on(gpus: int, question: Question, held: HeldModel, adapter: float) -> Memory | None:
    """What lies where on that many GPUs, or None where it doesn't fit."""
    device = gpus * question.gpu.memory_bytes
    free = device - held.held_bytes
    if free <= 0:
        return None
    everything = question.adapters * adapter
    # More GPUs than heads of keys and values hold copies of these.
    copies = max(1.0, gpus / question.model.kv_heads)
    kv_token = held.base.kv_bytes_per_token * copies
    if question.gpu.kind == "cpu":
        kv = min(CPU_KV_MOST, CPU_KV_SHARE * free)
        adapters = question.adapter_memory or min(everything, max(adapter, CPU_ADAPTER_SHARE * kv))
        host = question.host_memory or CPU_HOST_SHARE * free
        slack = max(free - kv - adapters - host, 0.0)
    else:
        slack = SLACK_SHARE * free
        adapters = question.adapter_memory or min(everything, max(adapter, ADAPTER_SHARE * free))
        kv = free - slack - adapters
        host = question.host_memory or everything
    if kv < question.sequence * kv_token or adapters < adapter or adapters + kv > free:
        return None
    host = min(host, everything)
    return Memory(
        gpus=gpus,
        held=held,
        device=device,
        weights=held.held_bytes,
        slack=slack,
        kv=kv,
        adapters=adapters,
        adapter=adapter,
        host=host,
        disk=everything,
        kv_token=kv_token,
        slots=min(int(adapters // adapter), question.adapters),
        host_slots=max(min(int(host // adapter), question.adapters), min(int(adapters // adapter), question.adapters)),
    )


def _too_large(question: Question, held: HeldModel, most: int) -> str:
    sequence = question.sequence * held.base.kv_bytes_per_token
    needed = held.held_bytes + sequence / (1 - SLACK_SHARE - ADAPTER_SHARE)
    has = most * question.gpu.memory_bytes
    larger = [
        name
        for name, one in known_accelerators().items()
        if one.memory_gb > question.gpu.memory_gb and most * one.memory_bytes > needed
    ]
    remedy = f"take {' or '.join(larger[-3:])}, " if larger else ""
    return (
        f"{question.model.name} in {question.weights} takes {held.held_bytes / 1e9:.3g} GB and a sequence of "
        f"{question.sequence:,} tokens {sequence / 1e9:.3g}; with adapters that is too much for {most} of "
        f"{question.gpu.name}, {has / 1e9:.3g} GB; {remedy}--weights int4, or a smaller --context or --adapter-memory"
    )
