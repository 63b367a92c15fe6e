"""What `livery serve` prints once it is ready: what is served, what was refused, and how to try it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape

from livery import __version__
from livery.listening import Listener
from livery.service import GenerationService
from livery.settings import Settings
from livery.tenancy import is_loopback

PROMPT = "Tell me about your day."
MAX_TOKENS = 64
MAX_LISTED = 20


def announce(
    service: GenerationService,
    adapters: Mapping[str, Any],
    listener: Listener,
    asked: str,
    *,
    needs_key: bool,
    warning: str = "",
    admin: Listener | None = None,
) -> None:
    """Print to standard output; `adapters` is a first page of them, `asked` what was asked of the engine, as flags."""
    console = Console(highlight=False, soft_wrap=True)
    where, info = listener.uds or listener.url, service.info
    console.print(
        f"\n[bold]Livery {__version__}[/] serves [bold]{escape(service.base_name)}[/] on [bold]{escape(str(where))}[/]"
    )
    computed = f"kernels: {escape(info.kernels)}, decoder: {escape(info.decoder)}"
    console.print(f"  {info.architecture}, {info.device} {info.dtype}, {computed}")
    if info.weights:
        console.print(f"  weights: {escape(info.weights)}; threads: {info.threads or 'of the device'}")
    if asked:
        console.print(f"  asked for: {escape(asked)}")
    if admin is not None:
        console.print(f"  admin API on {escape(str(admin.uds or admin.url))}")
    _print_adapters(console, adapters)
    if warning:
        console.print(f"\n[yellow]{escape(warning)}[/]")
    name = next((shown["name"] for shown in adapters["data"] if "digest" in shown), service.base_name)
    console.print("\n[bold]Try it[/]")
    console.print(curl(listener, name, needs_key), markup=False)
    if listener.uds is None:
        console.print("\n[bold]or in Python[/] (pip install openai)")
        console.print(snippet(listener.url, name, needs_key), markup=False)
    console.print("\nCtrl-C stops the server.")


def open_door(settings: Settings) -> str:
    """Who may use a server that asks for no key, and how to have it ask."""
    who = (
        "everybody on this machine" if settings.uds or is_loopback(settings.host) else f"all that reach {settings.host}"
    )
    place = f"--data {shlex.quote(str(settings.data_folder))}{' --registry URL' if settings.registry else ''}"
    return (
        f"No key is configured: {who} may use this server. It asks for a key from the first one on that is made:\n"
        f"  livery keys create --tenant NAME {place}"
    )


def curl(listener: Listener, model: str, needs_key: bool) -> str:
    body = {"model": model, "max_tokens": MAX_TOKENS, "messages": [{"role": "user", "content": PROMPT}]}
    key = ' -H "authorization: Bearer $LIVERY_API_KEY"' if needs_key else ""
    to = f"--unix-socket {shlex.quote(str(listener.uds))} " if listener.uds else ""
    url = f"{listener.url}/v1/chat/completions"
    return f"curl {to}{url} -H 'content-type: application/json'{key} \\\n  -d '{json.dumps(body)}'"


def snippet(url: str, model: str, needs_key: bool) -> str:
    key = 'os.environ["LIVERY_API_KEY"]' if needs_key else '"none"'
    return "\n".join(
        (
            *(("import os",) if needs_key else ()),
            "from openai import OpenAI",
            f'client = OpenAI(base_url="{url}/v1", api_key={key})',
            "answer = client.chat.completions.create(",
            f"    model={json.dumps(model)},",
            f"    max_tokens={MAX_TOKENS},",
            f'    messages=[{{"role": "user", "content": "{PROMPT}"}}],',
            ")",
            "print(answer.choices[0].message.content)",
        )
    )


def _print_adapters(console: Console, adapters: Mapping[str, Any]) -> None:
    if not adapters["data"]:
        console.print("  no adapters; put PEFT folders into --adapters DIR, or: livery adapters add NAME DIR")
    for shown in adapters["data"]:
        if "digest" in shown:
            console.print(f"  [green]✓[/] {escape(shown['name'])}  {_summary(shown)}")
        if shown["error"]:
            console.print(f"  [red]✗[/] {escape(shown['name'])}  {shown['state']}: {escape(shown['error'])}")
    if adapters["has_more"]:
        console.print("  … and more: livery adapters ls")


def _summary(shown: Mapping[str, Any]) -> str:
    ranks = shown["coverage"]["ranks"]
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else "no rank"
    kind = "" if shown["peft_type"] == "LORA" else f"{shown['peft_type']}, "
    return f"{kind}{rank}, {shown['bytes'] / 1e6:.1f} MB, {shown['digest'][:12]}"
