"""Run in an environment with grafana-foundation-sdk: what of a dashboard its schema doesn't know.

    python board_check.py livery.json

Reads it as the SDK's types and writes it again: what is lost or changed on the way is no part of the schema.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder  # type: ignore[import-not-found,unused-ignore]
from grafana_foundation_sdk.cog.plugins import (  # type: ignore[import-not-found,unused-ignore]
    register_default_plugins,
)
from grafana_foundation_sdk.models.dashboard import Dashboard  # type: ignore[import-not-found,unused-ignore]


def lost(given: Any, back: Any, at: str = "") -> Iterator[str]:
    if isinstance(given, dict) and isinstance(back, dict):
        for key, value in given.items():
            yield from lost(value, back.get(key), f"{at}.{key}")
    elif isinstance(given, list) and isinstance(back, list) and len(given) == len(back):
        for place, (one, other) in enumerate(zip(given, back, strict=True)):
            yield from lost(one, other, f"{at}[{place}]")
    elif given != back:
        yield f"{at}: {given!r} came back as {back!r}"


def main() -> int:
    register_default_plugins()
    given = json.loads(Path(sys.argv[1]).read_text())
    back = json.loads(json.dumps(Dashboard.from_json(given), cls=JSONEncoder))
    found = list(lost(given, back))
    print("\n".join(found) or f"{len(given['panels'])} panels, as the schema has them")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
