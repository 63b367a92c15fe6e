"""How the answers of `livery keys` and `livery tenants` look to people."""

from __future__ import annotations

from rich.markup import escape

from livery.adapter_views import Json
from livery.commands.shown import print_facts, print_table, say, time_text
from livery.tenancy import EVERYTHING


def tenants(answer: Json) -> None:
    rows = [
        (
            escape(one["name"]),
            "disabled" if one["disabled"] else "in use",
            f"{one['weight']:g}",
            _limits(one["limits"]),
            time_text(one["created"]),
        )
        for one in answer["data"]
    ]
    columns = ("name", "state", "weight", "limits", "since")
    print_table("Tenants", columns, rows, whole=("name", "state", "weight"))


def tenant(answer: Json) -> None:
    print_facts(
        {
            "name": answer["name"],
            "weight": answer["weight"],
            "limits": _limits(answer["limits"]),
            "since": time_text(answer["created"]),
            "disabled": "yes: its keys are taken for wrong ones" if answer["disabled"] else None,
        }
    )


def deleted(answer: Json) -> None:
    say(f"tenant {answer['name']} is deleted, and its keys and shares with it")


def keys(answer: Json) -> None:
    rows = [
        (
            key["id"],
            escape(key["tenant"]),
            key["role"],
            key["state"],
            _allowed(key["allow"]),
            _limits(key["limits"]),
            escape(key["label"]),
            time_text(key["created"]),
            _expires(key),
        )
        for key in answer["data"]
    ]
    columns = ("id", "tenant", "role", "state", "may ask", "limits", "label", "made", "expires")
    print_table("Keys", columns, rows, whole=("id", "tenant", "role", "state"))


def about_key(answer: Json, place: str) -> str:
    """What is to be said beside a new key."""
    made = ", who was made as well" if answer.get("tenant_created") else ""
    ends = f", good until {_expires(answer)}" if answer["expires"] else ""
    told = f"key {answer['id']} of tenant {answer['tenant']}{made}: role {answer['role']}{ends}"
    if "replaces" in answer:
        grace = answer["grace_s"]
        told += f", in place of {answer['replaces']}, which " + (f"ends in {grace:g} s" if grace else "has ended")
    return f"{told}; kept in {place}, and shown only now"


def revoked(answer: Json) -> None:
    say(f"key {answer['id']} of tenant {answer['tenant']} is revoked")


def _allowed(words: list[str]) -> str:
    return "everything" if set(EVERYTHING) <= set(words) else escape(", ".join(words))


def _limits(limits: Json) -> str:
    return escape(", ".join(f"{name}={value}" for name, value in limits.items()))


def _expires(key: Json) -> str:
    return time_text(key["expires"]) if key["expires"] else ""
