"""How the answers of `livery adapters` look to people. What is in them is said in livery.management."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from livery.adapter_views import Json
from livery_adapters.profile import read_profile, write_profile

RANKS_SHOWN = 4
MODULES_SHOWN = 12  # adapters name a handful of kinds of modules; a list of hundreds is for --json


def listing(answer: Json) -> None:
    """A page of adapters, and what is to be known of single ones below it."""
    over = f" over {escape(answer['base'])}" if answer["base"] else ""
    columns = ("name", "state", "version", "ranks", "size", "in memory", "running")
    print_table(f"Adapters{over}", columns, map(_row, answer["data"]), whole=("name", "version"))
    console = Console(soft_wrap=True)
    for adapter in answer["data"]:
        notes = [adapter["error"]] if adapter.get("error") else adapter.get("coverage", {}).get("warnings", ())
        for note in notes:
            console.print(f"{escape(adapter['name'])}: {escape(note)}", highlight=False)
    _more(answer, "ls")


def _more(page: Json, command: str) -> None:
    """How the next page is asked for, where there is one."""
    if page["next_after"] is not None:
        more = f"more: livery adapters {command} --after {page['next_after']}"
        Console(soft_wrap=True).print(escape(more), highlight=False)


def record(answer: Json) -> None:
    """One adapter: how it stands, and what its active version changes; of somebody else's only what is told of it."""
    facts = {
        "name": answer["name"],
        "state": answer["state"] + (", pinned" if answer["pinned"] else ""),
        "error": answer.get("error"),
        "generation": answer["generation"],
        "from": _origin(answer),
        "in memory": _yes(answer.get("resident")),
        "running": answer.get("requests"),
        "changed": time_text(answer["updated"]),
    }
    print_facts(facts | (_version(answer) if "digest" in answer else {}))
    _warn((*answer.get("coverage", {}).get("warnings", ()), *answer.get("unused", ())))


def report(answer: Json) -> None:
    """What became of a check: the coverage report, or what the files say where no base was named."""
    verdict = "[green]ok[/]" if answer["ok"] else "[red]not as PEFT applies it[/]"
    coverage = answer.get("coverage", {})
    found = coverage or answer["files"]
    Console(soft_wrap=True).print(f"{verdict} {found['digest']}", highlight=False)
    if not coverage:
        print_facts({**found, "note": answer["note"]})
        return
    print_facts({"type": coverage["peft_type"], **_coverage(coverage), **_peft(answer.get("peft"))})
    _warn((*coverage.get("warnings", ()), *answer.get("unused", ())))


def history(answer: Json) -> None:
    """The versions of a name, newest first."""
    columns = ("version", "digest", "state", "type", "size", "added")
    rows = [
        (
            str(version["version"]),
            version["digest"][:12],
            "active" if version["active"] else "kept" if version["proven"] else "not run yet",
            version["peft_type"],
            size(version["bytes"]),
            time_text(version["created"]),
        )
        for version in answer["data"]
    ]
    print_table(f"Versions of {escape(answer['name'])}", columns, rows, whole=("version", "digest", "state"))
    _more(answer, f"versions {answer['name']}")


def profile(answer: Json) -> None:
    """As a file that `adapters profile NAME FILE` takes."""
    print(write_profile(read_profile(answer["profile"])), end="")


def aliases(answer: Json) -> None:
    rows = [(escape(alias["name"]), _targets(alias), alias["sticky"]) for alias in answer["data"]]
    print_table("Aliases", ("name", "targets", "sticky"), rows, whole=("name", "sticky"))
    _more(answer, "aliases")


def alias(answer: Json) -> None:
    print_facts(
        {
            "name": answer["name"],
            "targets": _targets(answer),
            "sticky": answer["sticky"],
            "generation": answer["generation"],
            "changed": time_text(answer["updated"]),
        }
    )


def deleted(answer: Json) -> None:
    say(f"alias {answer['name']} is deleted")


def pushed(answer: Json) -> None:
    """Which version new weights became, and what that took."""
    new = answer["pushed"]
    print_facts(
        {
            "name": answer["name"],
            "version": f"{new['version']}, {'active' if new['active'] else 'not active'}",
            "digest": new["digest"],
            "fingerprint": new["system_fingerprint"],
            "generation": answer["generation"],
            "took": ", ".join(f"{stage} {seconds * 1000:.0f} ms" for stage, seconds in new["seconds"].items()),
        }
    )


def retired(answer: Json) -> None:
    left = f", {answer['requests']} requests still run on it and finish" if answer["requests"] else ""
    say(f"{answer['name']} is {answer['state']}{left}")


def shared(answer: Json) -> None:
    others = ", ".join(answer["shared_with"]) or "nobody"
    say(f"{answer['name']} is shared with {others}")


def collected(answer: Json) -> None:
    blobs = answer["blobs_removed"]
    say(f"{answer['versions_dropped']} versions dropped from histories, files of {len(blobs)} versions removed")
    for digest in blobs:
        say(f"  {digest}")
    if answer["shared_blobs_removed"]:
        say(f"files of {len(answer['shared_blobs_removed'])} versions removed from the shared object store")


def exported(answer: Json) -> None:
    say(f"{answer['name']} {answer['digest'][:12]} is in {answer['directory']}")


def merged(merge: Json) -> Json:
    """How adapters were merged, and what that cost."""
    density = f", density {merge['density']:g}" if merge["density"] != 1 else ""
    return {
        "merged by": merge["method"] + density,
        "held by the rank": f"but for {merge['error']:.1e} of ΔW" if merge["error"] else "exactly",
    }


def print_facts(facts: Json) -> None:
    """Names and values, one a line; empty values are left out."""
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        if value not in (None, [], (), {}, ""):
            table.add_row(name, escape(value if isinstance(value, str) else json.dumps(value)))
    Console(width=max(80, _terminal_width())).print(table)


def stage(what: str) -> None:
    """What a command is busy with, for whoever waits at a terminal."""
    console = Console(stderr=True)
    if console.is_terminal:
        console.print(f"[dim]{escape(what)}[/]")


def size(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB"


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], whole: Iterable[str] = ()) -> None:
    """Rows of markup. Columns without a word in them are left out; those named in `whole` are never folded.

    Where even so the terminal is too narrow, lines are longer than it is wide: what people copy stays in one piece.
    """
    lines = list(rows)
    table = Table(title=title, title_justify="left")
    kept = [index for index in range(len(columns)) if not lines or any(line[index] for line in lines)]
    for index in kept:
        name = columns[index]
        cells = [name, *(line[index] for line in lines)] if name in whole else []
        least = max((Text.from_markup(cell).cell_len for cell in cells), default=None)
        table.add_column(name, overflow="fold", min_width=least)
    for line in lines:
        table.add_row(*(line[index] for index in kept))
    console = Console(soft_wrap=True)
    console.width = max(console.width, console.measure(table).minimum)
    console.print(table)


def time_text(seconds: float) -> str:
    """A Unix time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def say(line: str) -> None:
    """A plain line."""
    Console(soft_wrap=True).print(escape(line), highlight=False)


def complain(line: str) -> None:
    """A plain line to standard error."""
    Console(stderr=True, soft_wrap=True).print(escape(line), highlight=False)


# -- inside ----------------------------------------------------------------------------------------------


def _row(adapter: Json) -> list[str]:
    coverage = adapter.get("coverage", {})
    return [
        escape(adapter["name"]),
        adapter["state"] + (", pinned" if adapter["pinned"] else ""),
        adapter.get("digest", "")[:12],
        _ranks(coverage.get("ranks", ())),
        size(adapter["bytes"]) if "bytes" in adapter else "",
        _yes(adapter.get("resident")),
        str(adapter.get("requests", "")),
    ]


def _yes(told: bool | None) -> str:
    return "" if told is None else "yes" if told else "no"


def _version(answer: Json) -> Json:
    parents = (f"{parent['weight']:g} × {parent['digest'][:12]}" for parent in answer.get("parents", ()))
    return {
        "version": answer["version"],
        "digest": answer["digest"],
        "type": answer["peft_type"],
        **(_coverage(answer["coverage"]) if "coverage" in answer else {"size": size(answer["bytes"])}),
        "approximated": f"to rank {answer['approximate']}" if answer["approximate"] else None,
        "run before": "yes" if answer["proven"] else "no: the first server that is asked for it tries it",
        "merged from": " + ".join(parents),
        **(merged(answer["merge"]) if "merge" in answer else {}),
        "profile": answer.get("profile"),
    }


def _coverage(coverage: Json) -> Json:
    return {
        "trained for": _task(coverage),
        "modules": _modules(coverage),
        "tokens of its own": coverage.get("added_tokens") or None,
        "ranks": _ranks(coverage["ranks"]),
        "numbers": ", ".join(coverage["dtypes"]),
        "size": size(coverage["nbytes"]),
        "form": _form(coverage),
        "‖ΔW‖/‖W‖": _effect(coverage),
    }


def _peft(found: Json | None) -> Json:
    if found is None:
        return {}
    return {
        "against PEFT": f"max |Δ|/max |logit| {found['difference']:.1e} over {found['tokens']} tokens "
        f"(allowed {found['tolerance']:.0e})",
        "moves the base": f"by {found['moves_base']:.2g} of the largest logit",
    }


def _task(coverage: Json) -> str:
    task, labels = coverage.get("task", "generate"), coverage.get("num_labels", 0)
    return {"generate": "text", "embed": "embeddings"}.get(task, f"classification, {labels} classes")


def _modules(coverage: Json) -> str:
    kinds = sorted(coverage["modules"].items(), key=lambda kind: (-kind[1], kind[0]))
    named = ", ".join(f"{count} {name}" for name, count in kinds[:MODULES_SHOWN])
    return f"{coverage['adapted']}: {named}" + (", ..." if len(kinds) > MODULES_SHOWN else "")


def _ranks(ranks: Iterable[int]) -> str:
    found = sorted(ranks)
    return f"{found[0]} to {found[-1]}" if len(found) > RANKS_SHOWN else ", ".join(map(str, found))


def _form(coverage: Json) -> str:
    if coverage["exact"] is None:
        return "not measured"
    if coverage["exact"]:
        return "exact"
    return f"approximated, off by up to {coverage['error']:.1e} of a module's change"


def _effect(coverage: Json) -> str | None:
    if coverage["median_effect"] is None:
        return None
    spread = [coverage[f"{which}_effect"] for which in ("smallest", "median", "largest")]
    return "min {:.2g}, median {:.2g}, max {:.2g}".format(*spread)


def _warn(warnings: Iterable[str]) -> None:
    console = Console(soft_wrap=True)
    for warning in warnings:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)


def _origin(answer: Json) -> str:
    source, origin = answer["source"], answer.get("origin", "")
    return source if origin in ("", source) else f"{source}: {origin}"


def _targets(alias: Json) -> str:
    return ", ".join(f"{target['adapter']}={target['weight']:g}" for target in alias["targets"])


def _terminal_width() -> int:
    try:
        return os.get_terminal_size().columns
    except OSError:  # not a terminal: nothing is cut
        return 400
