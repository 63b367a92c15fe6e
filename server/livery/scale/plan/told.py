"""A plan's numbers, each with its formula."""

from __future__ import annotations

from livery.scale.plan.figures import Figure
from livery.scale.plan.planner import Plan

Sections = dict[str, list[Figure]]

LIMITS = {
    "KV memory": "memory: keys and values leave room for too few rows",
    "adapter memory": "memory: the device holds too few adapters for more rows",
    "bandwidth": "bandwidth: decode steps read as fast as they can",
    "compute": "compute: prompts and rows take all arithmetic",
    "adapter loads": "bandwidth of the store or of host memory: adapters come in too slowly",
}


def figures(plan: Plan) -> Sections:
    """All of it, by heading.

    W weights, k bytes of a token's keys and values, a an adapter's, B rows, N distinct adapters, P and O tokens of
    prompts and answers, l requests a second of a replica, r the share of its time that goes to prompts.
    """
    return {
        "Memory of one replica": _memory(plan),
        "A step": _steps(plan),
        "Service": _service(plan),
        "Cost": _cost(plan),
    }


def _memory(plan: Plan) -> list[Figure]:
    memory, question = plan.memory, plan.question
    gpu, model, cpu = question.gpu, question.model, question.gpu.kind == "cpu"
    table = "one of them is the embedding" if model.tie_word_embeddings else f"the embedding in {question.dtype}"
    rule = "given" if question.adapter_memory else f"all, or {'half of KV' if cpu else '20 % of what weights leave'}"
    whole = "" if question.host_memory or cpu else ": all, so that none is read from the store twice"
    targets = f"rank {question.rank} x sum of in + out of {', '.join(question.targets)}, {question.adapter_dtype}"
    token = f"{memory.kv_tokens:,} tokens of {memory.kv_token:,.0f} bytes (2 x layers x KV heads x width)"
    return [
        Figure(
            "GPUs that share the model",
            memory.gpus,
            "",
            "of 1, 2, 4, 8: fewest in all, or --tensor-parallel",
        ),
        Figure("device memory", memory.device, "bytes", f"{memory.gpus} x {gpu.memory_gb:g} GB; {gpu.source}"),
        Figure("weights", memory.weights, "bytes", f"{model.linear_weights():,} as {question.weights}, {table}"),
        Figure("working memory", memory.slack, "bytes", "what is left" if cpu else "15 % of what weights leave"),
        Figure("one adapter (a)", memory.adapter, "bytes", targets),
        Figure("adapters on the device", memory.adapters, "bytes", f"room for {memory.slots:,}: {rule}"),
        Figure("keys and values", memory.kv, "bytes", token),
        Figure(
            "adapters in host memory", memory.host, "bytes", f"{memory.host_slots:,} of {question.adapters:,}{whole}"
        ),
        Figure("adapters on disk or in the object store", memory.disk, "bytes", "adapters x a; once for all replicas"),
    ]


def _steps(plan: Plan) -> list[Figure]:
    service, replica, question = plan.service, plan.replica, plan.question
    rows = max(service.rows, 1.0)
    keys, distinct = replica.keys(rows), replica.distinct(rows)
    base = plan.memory.held.base
    rest, adapters = base.weight_bytes + base.kv_bytes_per_token * keys, plan.memory.adapter * distinct
    floor, bare = plan.floor.decode(rows, keys, distinct), plan.floor.decode(rows, keys, 0.0)
    prompt = plan.floor.prefill(question.prompt_tokens)
    binds = f"larger of bytes / bandwidth and operations / arithmetic: {plan.floor.decode_bound(rows, keys, distinct)}"
    shared = "at {:.0%} of bandwidth, {:.0%} of arithmetic".format(*question.efficiency)
    how = "one after the other" if question.gpu.kind == "cpu" else "kernel by kernel"
    shared = f"reading and computing {how}, {shared}"
    chunks = f"{question.prompt_tokens:,} tokens in steps of {plan.floor.chunk:,}, alone"
    most = f"KV memory {replica.rows_by_kv:,}, distinct adapters that fit {replica.rows_by_adapters:,}"
    most = f"least of {most}, --max-running {question.max_running:,}"
    return [
        Figure("rows decoding together (B)", rows, "", "l = B (1 - r) / (O t(B)), solved for B"),
        Figure("rows at most", replica.most_rows, "", most),
        Figure("distinct adapters among them (N)", distinct, "", "sum of 1 - (1 - p_i)^B"),
        Figure("read by a decode step", rest + adapters, "bytes", "W + k B (P + O/2) + N a"),
        Figure("of it adapters, over the rest", adapters / rest, "share", "N a / (W + k B (P + O/2))"),
        Figure("decode step, floor", floor, "seconds", binds),
        Figure("decode step without adapters, floor", bare, "seconds", "the same with N = 0"),
        Figure("tokens of one replica, floor", rows / floor, "tokens/s", "B / decode step; prompts not counted"),
        Figure("decode step, expected", service.step, "seconds", shared),
        Figure("prompt, floor", prompt, "seconds", chunks),
        Figure("prompt, expected", service.prompt, "seconds", "the same"),
    ]


def _service(plan: Plan) -> list[Figure]:
    service, replica, question, memory = plan.service, plan.replica, plan.question, plan.memory
    used = service.rate / replica.capacity
    link = f"a / {replica.host_rate / 1e9:g} GB/s" if question.gpu.kind == "gpu" else "read where it lies"
    of_store, of_host = memory.adapter / question.store_rate, memory.adapter / replica.host_rate
    store = f"a / {question.store_rate / 1e9:g} GB/s: --store-gb-s"
    return [
        Figure("replicas", plan.replicas, "", "fewest that hold the rate" if question.rps else "no --rps given: one"),
        Figure("GPUs", plan.gpus, "", f"replicas x {memory.gpus}"),
        Figure("requests", plan.rate, "/s", "--rps" if question.rps else "the most within headroom and SLO"),
        Figure("tokens of answers", plan.rate * question.output_tokens, "/s", "requests x O"),
        Figure("capacity of one replica", replica.capacity, "requests/s", "1 / (t_p + O t(B) / B) at the most rows"),
        Figure("of it used", used, "share", f"at most {question.headroom:.0%}: --headroom"),
        Figure("time that goes to prompts (r)", service.reading, "share", "l x prompt"),
        Figure("time per output token", service.tpot, "seconds", "decode step / (1 - r)"),
        Figure("time to first token, p95", service.ttft, "seconds", "wait of M/G/1 + adapter's load + a step + prompt"),
        Figure("adapter found on the device", replica.hit_device, "share", f"Che: the {memory.slots:,} used last"),
        Figure("found there or on the host", replica.hit_host, "share", f"Che: the {memory.host_slots:,} used last"),
        Figure("load from host memory", of_host, "seconds", link),
        Figure("load from the store", of_store, "seconds", store),
    ]


def _cost(plan: Plan) -> list[Figure]:
    question = plan.question
    both = plan.gpu_hours * question.output_tokens / (question.output_tokens + question.prompt_tokens)
    found = [Figure("GPU-hours for a million output tokens", plan.gpu_hours, "h", "GPUs / tokens of answers a second")]
    if question.price_per_hour:
        price = question.price_per_hour
        found += [
            Figure("price of a million output tokens", plan.gpu_hours * price, "", "GPU-hours x --price-per-hour"),
            Figure("price of a million tokens, prompts counted", both * price, "", "as above, over P + O"),
            Figure("price of an hour", plan.gpus * price, "", "GPUs x --price-per-hour"),
        ]
    return found


def limit_words(plan: Plan) -> str:
    """What limits, in a sentence."""
    if not plan.limit:
        used = plan.service.rate / plan.replica.capacity
        return f"nothing yet: the fewest GPUs, {plan.memory.gpus}, are used to {used:.0%} of their capacity"
    begin = "one replica fewer fails by " if plan.replicas > 1 else "more requests fail by "
    return begin + LIMITS.get(plan.limit, f"the bound {plan.limit}")
