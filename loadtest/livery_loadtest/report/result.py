"""The document of a measurement, `livery-load/1`: all that was found, so that any number can be worked out again.

API keys are never in it: workloads name the environment variables that hold them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import msgspec

from livery_loadtest.capacity import Capacity
from livery_loadtest.figures import Measured, Summary, summarise
from livery_loadtest.origin import Origin
from livery_loadtest.record import Run
from livery_loadtest.report.packed import Repeat, pack, unpack_samples
from livery_loadtest.spec import Workload
from livery_loadtest.verify import Verification

SCHEMA: Literal["livery-load/1"] = "livery-load/1"
_SECRET = re.compile(r"(?<=//)[^/@\s]+@")  # http://USER:PASSWORD@host


class ResultUnreadable(ValueError):
    """A file is no result that this version can read; the message names the file and what is wrong with it."""


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A server under test. `settings` is what it was started with, in the words that its report shows, and why."""

    name: str
    url: str
    version: str | None = None
    base: str = ""
    adapters: tuple[str, ...] = ()
    settings: dict[str, str] = {}


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """One workload on one or several targets, every repeat of it; `summary` has one entry a target, in their order.

    `verified` is by target; `capacity` is that of a search, whose every trial is a result of its own.
    """

    schema: Literal["livery-load/1"] = SCHEMA
    origin: Origin
    workload: Workload
    targets: tuple[Server, ...]
    summary: tuple[Summary, ...]
    verified: dict[str, Verification] = {}
    capacity: Capacity | None = None
    repeats: tuple[Repeat, ...]

    @cached_property
    def measured(self) -> dict[str, list[Measured]]:
        """Each target's repeats as arrays, in their order. Raises ValueError for columns that don't fit together."""
        return {
            target.name: [
                Measured(one.repeat, one.seconds, one.columns(), unpack_samples(one.samples), one.interrupted)
                for one in self.repeats_of(target.name)
            ]
            for target in self.targets
        }

    def repeats_of(self, target: str) -> list[Repeat]:
        """The repeats of one target, in their order."""
        return sorted((one for one in self.repeats if one.target == target), key=lambda one: one.repeat)

    @property
    def doubts(self) -> list[str]:
        """Why this isn't a measurement of the servers, in words; none: it is valid."""
        return [doubt for target in self.targets for doubt in self.doubts_of(target.name)]

    def doubts_of(self, target: str) -> list[str]:
        """Those of one target's repeats."""
        return [
            f"{target}, repeat {one.repeat + 1}: {reason}"
            for one in self.repeats_of(target)
            for reason in one.health.reasons
        ]

    def anew_of(self, target: str) -> list[str]:
        """Which of one target's repeats were measured anew from more processes, in words."""
        return [
            f"repeat {one.repeat + 1} from {one.health.processes} processes, since {', then '.join(one.health.anew)}"
            for one in self.repeats_of(target)
            if one.health.anew
        ]

    @property
    def interrupted(self) -> bool:
        return any(one.interrupted for one in self.repeats)

    def stopped(self) -> Result:
        """The same, marked interrupted after its last repeat."""
        *before, last = self.repeats
        return msgspec.structs.replace(self, repeats=(*before, msgspec.structs.replace(last, interrupted=True)))

    @property
    def failed(self) -> int:
        """Requests without a usable answer."""
        return sum(one.failed for one in self.summary)

    @property
    def wrong(self) -> int:
        """Answers that came from another model than the one asked for."""
        return sum(len(one.wrong) for one in self.verified.values())


def make_result(
    workload: Workload,
    targets: Sequence[Server],
    runs: Sequence[Run],
    origin: Origin,
    verified: Mapping[str, Verification] | None = None,
    capacity: Capacity | None = None,
) -> Result:
    """Put together and summed up; targets without any run are left out."""
    began = min((run.started for run in runs), default=0.0)
    named = {run.target for run in runs}
    result = Result(
        origin=replace(origin, command=_SECRET.sub("", origin.command)),
        workload=workload,
        targets=tuple(
            msgspec.structs.replace(one, url=_SECRET.sub("", one.url)) for one in targets if one.name in named
        ),
        summary=(),
        verified=dict(verified or {}),
        capacity=capacity,
        repeats=tuple(pack(run, began) for run in runs),
    )
    summary = tuple(summarise(name, repeats, workload) for name, repeats in result.measured.items())
    return msgspec.structs.replace(result, summary=summary)


def write_result(result: Result, path: Path) -> None:
    """Write the document as JSON, one line for each of its parts and repeats, creating the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = []
    for name in result.__struct_fields__:
        value = getattr(result, name)
        text = msgspec.json.encode(value)
        if name == "repeats" and value:
            text = b"[\n" + b",\n".join(msgspec.json.encode(one) for one in value) + b"\n]"
        parts.append(msgspec.json.encode(name) + b": " + text)
    path.write_bytes(b"{\n" + b",\n".join(parts) + b"\n}\n")


def read_result(path: Path) -> Result:
    """Read and check a document. Raises ResultUnreadable."""
    try:
        result = msgspec.json.decode(path.read_bytes(), type=Result)
        unknown = {one.target for one in result.repeats} - {one.name for one in result.targets}
        if unknown:
            raise ValueError(f"repeats of {', '.join(sorted(unknown))}, which isn't among its targets")
        _ = result.measured
    except OSError as error:
        raise ResultUnreadable(f"{path}: {error.strerror}; give the JSON file that a run wrote") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise ResultUnreadable(f"{path}: not a result of schema {SCHEMA}: {error}") from error
    return result
