"""Adapters as rows of a table for people: what each is, where it lies, what the caller's requests of it came to.

    view = Viewer(principal, served, lately, under_way, device, host)      # files by where they lie
    answer = table(view, known, Wanted(search="pirate", sort="tokens", descending=True, limit=50))

A tenant sees what its own requests did, also of adapters that others use too; an admin what all did.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
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
    """One caller's view of adapters at one moment. `device` and `host` are digests of files that lie there.

    Of what changes meanwhile it looks single keys up, so another thread may use it.
    """

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

    def seen(self, known: Mapping[str, Brief]) -> dict[str, Brief]:
        """What the caller may ask of what is known by names in full, as the caller calls it."""
        principal = self._principal
        if principal.role == "admin":
            return dict(known)
        prefix, found = scope.prefix(principal), dict[str, Brief]()
        kinds: dict[str, tuple[scope.Kind, bool]] = {}  # by owner, and whether the key may ask for all of the kind
        for full, brief in known.items():
            if brief.owner not in kinds:
                kind = scope.kind_of(principal, brief.owner)
                kinds[brief.owner] = kind, scope.allows_all(principal, kind)
            (kind, every), shown = kinds[brief.owner], full.removeprefix(prefix)
            reachable = kind != "shared" or principal.tenant in brief.grantees
            hidden = kind != "own" and prefix + shown in known
            if reachable and not hidden and (every or scope.allows(principal, kind, shown)):
                found[shown] = brief
        return found

    def row(self, name: str, brief: Brief) -> Json:
        """Of what isn't the caller's own: that it is there, and what the caller's requests of it came to."""
        own, active = scope.owns(self._principal, brief.owner), brief.active is not None
        done = self._lately.adapters.get(brief.name)
        return {
            "name": name,
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


def table(viewer: Viewer, known: Mapping[str, Brief], wanted: Wanted) -> Json:
    """Those that are wanted, of how many. Takes some microseconds for each that there is: not for an event loop."""
    seen, search = viewer.seen(known), wanted.search.lower()
    names = sorted(name for name in seen if search in name.lower())
    part = slice(wanted.offset, wanted.offset + wanted.limit)
    if wanted.sort == "name":  # no more rows than are shown
        rows = [viewer.row(name, seen[name]) for name in (names[::-1] if wanted.descending else names)[part]]
    else:
        rows = _sorted([viewer.row(name, seen[name]) for name in names], wanted.sort, wanted.descending)[part]
    return {"data": rows, "total": len(seen), "found": len(names), "offset": wanted.offset, "limit": wanted.limit}


def _sorted(by_name: Sequence[Json], column: Column, descending: bool) -> list[Json]:
    """Of rows by name those by a column, then by name; what has no value there comes last in either direction."""
    known = [row for row in by_name if row[column] is not None]
    return sorted(known, key=lambda row: row[column], reverse=descending) + [
        row for row in by_name if row[column] is None
    ]
