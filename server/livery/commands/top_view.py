"""How a server's status looks in a terminal. Names and errors are text: nothing in them is read as markup."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from livery.adapter_views import Json

ACCENT = "cyan"
QUIET = "bright_black"
BLOCKS = " ▁▂▃▄▅▆▇█"
BAR = 18
TIERS = {"device": "● device", "host": "◐ host", "store": "○ store", None: "–"}
COLUMNS = (
    *(("adapter", False), ("where", False), ("type", False), ("size", True), ("running", True), ("requests", True)),
    *(("tokens", True), ("TTFT p50", True), ("p95", True), ("used", True)),
)


def frame(found: Json, before: Json | None, trouble: str | None = None) -> RenderableType:
    """One frame; `before` is the one before it, for what is worked out from both. `trouble`: why this is an old one."""
    parts: list[RenderableType] = [_head(found), _overview(found, before), _adapters(found["adapters"])]
    if found["caller"]["sees"] == "tenant":
        whose = f"What tenant {found['caller']['tenant']} does; the whole server's figures are for its operator's key."
        parts.insert(2, Text(whose, QUIET))
    if trouble:
        parts.append(Text(f"{trouble}; trying again", "red"))
    elif not found["engine"]["answers"]:
        parts.append(Text("the engine doesn't answer", "red"))
    return Group(*parts)


def _head(found: Json) -> Text:
    base, engine = found["base"], found["engine"]
    count = engine["threads"]
    threads = f"{count} thread{'s' if count > 1 else ''}" if count else None
    facts = [engine["device"], engine["dtype"], threads, f"up {span(found['server']['uptime_s'])}"]
    return Text.assemble(
        ("Livery ", f"bold {ACCENT}"), (base["name"], "bold"), "  ", (" · ".join(fact for fact in facts if fact), QUIET)
    )


def _overview(found: Json, before: Json | None) -> Panel:
    load, speed, memory = found["load"], found["throughput"], found["memory"]
    table = Table.grid(padding=(0, 3))
    table.add_row(
        Text("tokens/s", QUIET),
        Text.assemble((f"{speed['generated_per_s']:,.1f}", "bold"), f"  prompt {speed['prompt_per_s']:,.1f}"),
        Text(sparks(speed["generated_by_second"]), ACCENT),
    )
    table.add_row(
        Text("queue", QUIET),
        Text.assemble((number(load["running"]), "bold"), " running, ", (number(load["waiting"]), "bold"), " waiting"),
        Text(_steps(found, before), QUIET),
    )
    if memory is not None:
        kv, device, host = memory["kv"], memory["device"], memory["host"]
        used = f"{number(kv['used_tokens'])} of {number(kv['total_tokens'])} tokens, {number(kv['cached_tokens'])} kept"
        table.add_row(Text("KV cache", QUIET), bar(kv["used_tokens"], kv["total_tokens"]), Text(used))
        held = f"{number(device['adapters'])} in {size(device['used_bytes'])} of {size(device['limit_bytes'])}"
        if host["adapters"]:
            held += f", host {number(host['adapters'])} in {size(host['used_bytes'])}"
        table.add_row(Text("adapters", QUIET), bar(device["used_bytes"], device["limit_bytes"]), Text(held))
    return Panel(table, border_style=QUIET, padding=(0, 1), expand=False)


def _steps(found: Json, before: Json | None) -> str:
    """Steps a second since the frame before, and how long one took; the first frame says so of all there were."""
    load, last = found["load"], before["load"] if before else {"steps": 0, "step_seconds": 0.0}
    if None in (load["steps"], last["steps"]):
        return ""
    passed = found["server"]["uptime_s"] - (before["server"]["uptime_s"] if before else 0.0)
    steps, spent = load["steps"] - last["steps"], load["step_seconds"] - last["step_seconds"]
    if passed <= 0 or steps <= 0:
        return "no steps"
    return f"{steps / passed:,.1f} steps/s" + (f", {seconds(spent / steps)} a step" if spent > 0 else "")


def _adapters(page: Json) -> Table:
    shown = f"{len(page['data'])} of {page['found']:,} by tokens" if page["found"] > len(page["data"]) else "by tokens"
    table = Table(box=None, header_style=QUIET, pad_edge=False, caption=shown, caption_justify="left")
    table.caption_style = QUIET
    for name, right in COLUMNS:
        table.add_column(name, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    for adapter in page["data"]:
        table.add_row(*_row(adapter))
    return table


def _row(adapter: Json) -> list[Text]:
    name = Text(adapter["name"], "bold" if adapter["running"] else "")
    if adapter["pinned"]:
        name.append(" pinned", "yellow")
    if adapter["error"]:
        name.append(f" {adapter['error']['code'] or 'failed'}", "red")
    kind = f"{adapter['peft_type'] or '–'} {adapter['rank'] or ''}".strip()
    cells = (
        *(TIERS[adapter["tier"]], kind, size(adapter["bytes"]), number(adapter["running"] or None)),
        *(number(adapter["requests"]), number(adapter["tokens"])),
        *(seconds(adapter["ttft_p50_s"]), seconds(adapter["ttft_p95_s"])),
        "–" if adapter["last_used_s"] is None else span(adapter["last_used_s"]),
    )
    return [name, *(Text(cell) for cell in cells)]


def bar(used: float, whole: float) -> Text:
    """A share as a bar and in percent."""
    share = min(1.0, used / whole) if whole else 0.0
    full = round(share * BAR)
    return Text.assemble(("━" * full, ACCENT), ("━" * (BAR - full), QUIET), f" {100 * share:3.0f} %")


def sparks(values: list[int]) -> str:
    """A column a second, from zero up to the highest. What a server can't mean counts as none."""
    most = max(1, *values) if values else 1
    return "".join(BLOCKS[-(-max(0, value) * (len(BLOCKS) - 1) // most)] for value in values)


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def size(value: int | None) -> str:
    """Bytes in one unit."""
    if value is None:
        return "–"
    amount, place = float(value), 0
    while amount >= 1000 and place < 4:
        amount, place = amount / 1000, place + 1
    return f"{amount:.1f} {'BKMGT'[place]}B" if place else f"{value} B"


def seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value * 1000:.1f} ms" if value < 0.01 else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def span(value: float) -> str:
    """A stretch of time in one unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if value >= 2 * length:
            return f"{value / length:.0f} {unit}"
    return f"{value:.0f} s"
