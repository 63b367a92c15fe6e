"""Adapters as rows of a table for people: what each is, where it lies, what the caller's requests of it came to.

    view = Viewer(principal, served, lately, under_way, device, host)      # files by where they lie
    rows = [view.row(brief, kind) for brief, kind in view.seen(known)]
    answer = page(rows, Wanted(search="pirate", sort="tokens", descending=True, limit=50))

A tenant sees what its own requests did, also of adapters that others use too; an admin what all did.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from livery.activity import AdapterFigures, Lately
from livery.served import ServedAdapters
from livery.tenancy import Principal, scope
from livery.under_way import UnderWay
from livery_adapters.registry import Brief
from livery_adapters.weightless import NONE

Json = dict[str, Any]
Column = Literal[
    "name", "state", "tier", "rank", "peft_type", "bytes", "running", "requests", "tokens", "ttft_p50_s", "ttft_p95_s",
    "last_used_s", "version",
]  # fmt: skip
COLUMNS: tuple[Column, ...] = get_args(Column)
MAX_PAGE = 1000
# What a message says of somebody else's adapter may be about its owner, so those who only use it get a fixed one.
FAILED_FOR_OTHERS = "a request failed; its answer said why"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which adapters: those whose name holds `search`, in the order of a column, `limit` of them from `offset` on."""

    search: str = ""
    sort: Column = "name"
    descending: bool = False
    offset: int = 0
    limit: int = 100


class Viewer:
    """One caller's view of adapters at one moment. `device` and `host` are digests of files that lie there."""

    def __init__(
        self,
        principal: Principal,
        served: ServedAdapters,
        lately: Lately,
        under_way: UnderWay,
        device: frozenset[str],
        host: frozenset[str],
    ) -> None:
        self._principal = principal
        self._served = served
        self._lately = lately
        self._under_way = under_way
        self._device = device
        self._host = host
        self._now = time.perf_counter()

    def seen(self, known: Mapping[str, Brief]) -> Iterator[tuple[Brief, scope.Kind]]:
        """What the caller may ask, and what it is to it; an admin sees everything as its own."""
        principal = self._principal
        for brief in known.values():
            kind = scope.kind_of(principal, brief.owner)
            if principal.role == "admin":
                yield brief, "own"
                continue
            shown = scope.shown(principal, brief.name)
            reachable = kind != "shared" or principal.tenant in brief.grantees
            hidden = kind != "own" and scope.in_full(principal, shown) in known
            if reachable and not hidden and scope.allows(principal, kind, shown):
                yield brief, kind

    def row(self, brief: Brief, kind: scope.Kind) -> Json:
        """Of what isn't the caller's own: that it is there, and what the caller's requests of it came to."""
        own, active = kind == "own", brief.active is not None
        done = self._lately.adapters.get(brief.name)
        return {
            "name": scope.shown(self._principal, brief.name),
            "own": own,
            "state": self._served.state(brief, self._under_way) if own else brief.state,
            "tier": self._tier(brief) if own and active else None,
            "rank": brief.rank or None,
            "peft_type": brief.peft_type or None,
            "bytes": brief.nbytes if active else None,
            "version": brief.active,
            "digest": brief.digest or None,
            "generation": brief.generation,
            "pinned": brief.pinned,
            "running": self._lately.running.get(brief.name, 0),
            **figures(done, self._now),
            "error": self._error(brief, done, own=own),
        }

    def _tier(self, brief: Brief) -> str:
        if brief.peft_type == NONE or brief.weights in self._device:  # NONE: the base's own weights are all it has
            return "device"
        return "host" if brief.weights in self._host else "store"

    def _error(self, brief: Brief, done: AdapterFigures | None, *, own: bool) -> Json | None:
        """What went wrong last: with taking in or loading the caller's adapter, else with a request of the caller's."""
        if own and brief.error is not None:
            return {"code": brief.error_code, "message": brief.error, "age_s": None}
        if done is None or not done.errors:
            return None
        message = done.error if own and done.error else FAILED_FOR_OTHERS
        return {"code": "request_failed", "message": message, "age_s": self._now - done.error_at}


NOTHING_DONE = AdapterFigures(0, 0, 0, 0, 0.0, "", 0.0, None, None)


def figures(done: AdapterFigures | None, now: float) -> Json:
    """What requests came to since the server started, or since they were last remembered."""
    if done is None:
        done = NOTHING_DONE
    return {
        "requests": done.requests,
        "errors": done.errors,
        "prompt_tokens": done.prompt_tokens,
        "generated_tokens": done.generated,
        "tokens": done.prompt_tokens + done.generated,
        "ttft_p50_s": done.ttft_p50_s,
        "ttft_p95_s": done.ttft_p95_s,
        "last_used_s": now - done.last_used if done.requests else None,
    }


def page(rows: list[Json], wanted: Wanted) -> Json:
    """Those that are wanted, of how many."""
    search = wanted.search.lower()
    found = [row for row in rows if search in row["name"].lower()]
    chosen = _sorted(found, wanted.sort, wanted.descending)[wanted.offset : wanted.offset + wanted.limit]
    return {"data": chosen, "total": len(rows), "found": len(found), "offset": wanted.offset, "limit": wanted.limit}


def _sorted(rows: Iterable[Json], column: Column, descending: bool) -> list[Json]:
    """By a column, then by name; what has no value there comes last in either direction."""
    by_name = sorted(rows, key=lambda row: str(row["name"]))
    known = [row for row in by_name if row[column] is not None]
    return sorted(known, key=lambda row: row[column], reverse=descending) + [
        row for row in by_name if row[column] is None
    ]
