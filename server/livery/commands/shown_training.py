"""What people read of a training run: its data, what became of it, where it was added."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.markup import escape

from livery.adapter_views import Json
from livery.commands import shown
from livery.training.run_file import Dpo
from livery_adapters.profile import PROFILE_NAME


def show_data(answer: Json) -> None:
    data = answer["data"]
    shown.print_facts(
        {
            "kind": answer["run"]["kind"],
            "to train on": f"{data['examples']} examples, {data['tokens']} tokens, {data['learnt_tokens']} learnt",
            "held out": f"{data['held_out']} examples",
            "broken lines": len(data["broken"]) or None,
        }
    )
    for line in data["broken"]:
        shown.say(f"{line['file']}:{line['line']}: {line['reason']}")
    warn(data["warnings"])


def show_trained(answer: Json) -> None:
    evaluation, losses = answer["evaluation"], answer["losses"]
    facts: dict[str, Any] = {
        "directory": answer["directory"],
        "steps": f"{answer['steps']}, in {answer['seconds']:.0f} s on {answer['device']}",
        "gone on from": f"step {answer['resumed_from']}" if answer["resumed_from"] else None,
        "loss": f"{losses[0][1]:.3f} at first, {losses[-1][1]:.3f} at last" if losses else None,
    }
    if evaluation:
        facts["held out"] = f"{evaluation['examples']} examples, through the engine"
        dpo = answer["settings"]["run"]["kind"] == Dpo.__struct_config__.tag
        for name, label in (("before", "  before"), ("after", "  after")):
            one = evaluation[name]
            more = (
                f"the better answer likelier in {one['preferred']:.0%}"
                if dpo
                else f"perplexity {one['perplexity']:.2f}"
            )
            facts[label] = f"loss {one['loss']:.4f}, {more}"
        facts["  by PEFT"] = f"loss {evaluation['peft']['after']['loss']:.4f}"
    shown.print_facts(facts)
    warn(answer["warnings"])
    if added := answer.get("added"):
        _show_added(added)
    else:
        shown.say(f"serve it: livery adapters add NAME {answer['directory']}")


def _show_added(added: Json) -> None:
    name, behind = added["name"], f", behind the alias {added['alias']['name']}" if added.get("alias") else ""
    if compared := added.get("compared"):
        losses = f"loss {compared['loss']:.4f}, and {compared['active_loss']:.4f} of version {added['active']}"
    if added["activated"]:
        than = f"; it does better on what was held out than the one before: {losses}" if compared else ""
        shown.say(f"{name} version {added['adapter']['version']} is active{behind}{than}")
    elif compared:
        shown.say(
            f"{name} version {added['version']} is not active: on what was held out it does no better than the one "
            f"that is ({losses}); {added['remedy']} serves it all the same"
        )
    elif why := added.get("unmeasured"):
        shown.say(
            f"{name} version {added['version']} is not active: version {added['active']} is, and the two couldn't be "
            f"compared ({why}). With a text as FILE that neither has learnt from, this serves it where it is better: "
            f"{added['remedy']}"
        )
    elif not added["base_known"]:
        shown.say(
            f"{name} version {added['version']} is not active: which base is served there isn't shown to this key. "
            f"Where it is the one that was trained on, {added['remedy']} serves it"
        )
    else:
        shown.say(
            f"{name} has it as a version that isn't active: it does no better on what was held out than what it began "
            f"from; {added['remedy']} serves it all the same"
        )
    _show_profile(added["profile"])


def _show_profile(profile: Json) -> None:
    """Whose profile the version got, where there is one."""
    fields, dropped = ", ".join(profile["fields"]), ", ".join(profile["dropped"])
    if profile["of_version"] is not None and fields:
        shown.say(f"it keeps the profile of version {profile['of_version']}: {fields}")
    elif fields or dropped:
        shown.say(
            f"its profile is the {PROFILE_NAME} beside its weights: {fields or 'nothing'}"
            + (f", in place of the active version's: {dropped}" if dropped else "")
        )


def warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        Console(stderr=True, soft_wrap=True).print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)


def note(what: str) -> None:
    Console(stderr=True, soft_wrap=True).print(escape(what), highlight=False)
