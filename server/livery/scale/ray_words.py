"""How a stream of events says that it was cut off, in the words of its route. Knows no Ray."""

from __future__ import annotations

from livery.api.errors import ANTHROPIC_PATH, describe_at
from livery.api.sse import event, named_event
from livery.scale.ray_exchange import Head

RESPONSES_PATH = "/v1/responses"
FACTS = ("code", "message", "param")


def failed_event(error: Exception, head: Head, path: str) -> bytes | None:
    """The last event of a stream that this error ended; None for an answer that is no stream of events."""
    if not dict(head.headers).get(b"content-type", b"").startswith(b"text/event-stream"):
        return None
    told = describe_at(error, path)
    if path.endswith(ANTHROPIC_PATH):
        return named_event(told.body)
    if path.endswith(RESPONSES_PATH):
        facts = told.body["error"]  # at either place, as the server has them; how many events there were nobody knows
        return named_event({"type": "error", **{name: facts[name] for name in FACTS}, "error": facts})
    return event(told.body)
