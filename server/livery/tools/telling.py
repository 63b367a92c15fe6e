"""Words that formats share when a chat template has none for tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence


def described(tools: Sequence[Mapping[str, object]]) -> str:
    """The functions, a line of JSON each."""
    return "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)


def called(function: Mapping[str, object], arguments: str) -> str:
    """A call as JSON, its arguments under the format's own key."""
    return json.dumps({"name": function.get("name"), arguments: function.get("arguments") or {}}, ensure_ascii=False)
