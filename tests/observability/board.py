"""The dashboard as its tests read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BOARD = Path(__file__).parent.parent.parent / "server" / "deploy" / "grafana" / "livery.json"
VARIABLES = {"$__rate_interval": "30s", "$job": ".*", "$instance": ".*"}


def board() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(BOARD.read_text())
    return found


def queries() -> list[tuple[str, str]]:
    """Every panel's title and query, variables put in as Grafana would."""
    found = []
    for panel in board()["panels"]:
        for target in panel.get("targets", ()):
            promql = target["expr"]
            for name, value in VARIABLES.items():
                promql = promql.replace(name, value)
            found.append((f"{panel['title']} {target['legendFormat']}".strip(), promql))
    return found
