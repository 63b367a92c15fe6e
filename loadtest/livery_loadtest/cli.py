"""The commands of `livery bench` that measure servers over HTTP; what each does is in `commands`."""

from __future__ import annotations

import typer

from livery_loadtest.commands import capacity, comparing, peers, random, run, suite

app = typer.Typer(
    help="Measure servers with an OpenAI-compatible API: throughput, latencies and answers, over many adapters.",
    no_args_is_help=True,
    add_completion=False,
)
app.command("run", help=run.HELP)(run.run)
app.command("suite", help=suite.HELP)(suite.run_suite)
app.command("compare", help=comparing.HELP)(comparing.compare_results)
app.command("capacity", help=capacity.HELP)(capacity.capacity)
app.command("peers", help=peers.HELP)(peers.peers)
app.command("random-adapters", help=random.HELP)(random.random_adapters)
app.command("install-peers")(peers.install_peers)
