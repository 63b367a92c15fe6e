"""LIVERY_* variables of the environment that nothing reads: a misspelt knob would be passed over without a word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from livery.settings import PREFIX, Settings, is_service_link
from livery_adapters.likeness import meant

KNOBS = tuple(f"{PREFIX}{name.upper()}" for name in Settings.model_fields)
# What commands, engines and the load test read, which a shell or an image may well have set for them.
OTHERS = ("ADMIN_URL", "BENCH_API_KEY", "BENCH_METRICS_KEY", "CACHE", "CONFIG", "SERVER_PID", "URL")
_LIKE = 0.8  # all begin alike, so that even the least like have much in common
# What Kubernetes sets for every Service whose name begins with `livery`, beside what has an address as its value.
_OF_A_SERVICE = re.compile(r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR))")


def unread_variables(environ: Mapping[str, str]) -> Iterator[str]:
    """What to say of each variable that begins as knobs do, isn't empty and is read by nothing; never its value."""
    read = {*KNOBS, *(f"{PREFIX}{name}" for name in OTHERS)}
    for name, value in sorted(environ.items()):
        linked = is_service_link(value) or _OF_A_SERVICE.fullmatch(name.removeprefix(PREFIX))
        if name.startswith(PREFIX) and value and name not in read and not linked:
            like = meant(name, KNOBS, like=_LIKE)
            yield f"{name} is set and nothing reads it; {like or '`livery serve --help` lists the knobs'}"
