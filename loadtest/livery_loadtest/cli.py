"""The commands of `livery bench`: read options, run, print. Holds no measurement of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from livery_loadtest.benchmark import AlwaysOn, Benchmark, Plan, Stage, Subject, find_subjects, request_count
from livery_loadtest.benchmark_report import Report, build_report, print_report
from livery_loadtest.client import Dialect
from livery_loadtest.machine import Machine, describe_machine
from livery_loadtest.origin import Origin
from livery_loadtest.peers import EnvironmentFailed
from livery_loadtest.peers.launching import SERVERS, PeersSetup, SideBySide
from livery_loadtest.peers.llama_cpp import LlamaCppEnvironment
from livery_loadtest.peers.vllm import VllmEnvironment, default_environment
from livery_loadtest.progress import RequestBar
from livery_loadtest.servers import ServerFailed, Sleep
from livery_loadtest.target import Target, TargetUnusable
from livery_loadtest.workload import Popularity, Scenario, Workload

LOCAL = "livery=http://127.0.0.1:8000"

app = typer.Typer(
    help="Measure servers with an OpenAI-compatible API: throughput and latencies, base against adapters.",
    no_args_is_help=True,
    add_completion=False,
)

Streams = Annotated[int, typer.Option(min=1, help="Requests under way at once.")]
Requests = Annotated[int, typer.Option(min=1, help="Requests per round, scenario and target.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds; targets and scenarios alternate within each.")]
WarmUp = Annotated[int, typer.Option(min=0, help="Requests per target and scenario before the first round.")]
PromptWords = Annotated[int, typer.Option(min=1, help="Words per prompt; all prompts differ.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens per answer.")]
Check = Annotated[bool, typer.Option("--check", help="Also compare greedy answers alone and under load.")]
Seed = Annotated[int, typer.Option(min=0, help="Seeds prompts and the choice of adapters.")]
Out = Annotated[Path | None, typer.Option(help="Write everything measured to this JSON file.")]
Timeout = Annotated[float, typer.Option(min=0.1, help="Longest silence of a server in seconds.")]


@app.command()
def serve(
    target: Annotated[
        list[str] | None, typer.Option(help=f"NAME=URL of a running server; repeat to compare. Default: {LOCAL}")
    ] = None,
    streams: Streams = 16,
    requests: Requests = 32,
    rounds: Rounds = 3,
    warm_up: WarmUp = 16,
    prompt_words: PromptWords = 64,
    max_tokens: MaxTokens = 32,
    scenario: Annotated[list[Scenario] | None, typer.Option(help="Only this scenario; repeatable.")] = None,
    adapters: Annotated[str, typer.Option(help="Names a,b,…; otherwise all that /v1/models lists.")] = "",
    base: Annotated[str | None, typer.Option(help="The base's name; otherwise the first listed.")] = None,
    popularity: Annotated[Popularity, typer.Option(help="How requests spread over adapters.")] = (
        Popularity.ROUND_ROBIN
    ),
    zipf_exponent: Annotated[float, typer.Option(min=0.0)] = 1.0,
    chat: Annotated[bool, typer.Option("--chat", help="Use /v1/chat/completions.")] = False,
    ignore_eos: Annotated[bool, typer.Option(help="Always generate all tokens.")] = True,
    check: Check = False,
    seed: Seed = 0,
    timeout: Timeout = 300.0,
    out: Out = None,
) -> None:
    """Measure running servers in a closed loop: every stream sends its next request when its last is done.

    Servers that want a key get the one in LIVERY_BENCH_API_KEY; it is never written down.
    """
    workload = Workload(streams, requests, prompt_words, max_tokens, popularity, zipf_exponent, seed)
    plan = Plan(
        rounds=rounds,
        warm_up_requests=warm_up,
        scenarios=tuple(scenario) if scenario else Plan().scenarios,
        dialect=Dialect(chat, ignore_eos),
        check=check,
        timeout=timeout,
    )
    names = tuple(name.strip() for name in adapters.split(",") if name.strip())
    machine = describe_machine()
    try:
        subjects = asyncio.run(find_subjects(_targets(target or [LOCAL]), names, plan.timeout, base, _api_key()))
        report = _run(subjects, plan, workload, AlwaysOn(), machine, {})
    except (TargetUnusable, ValueError) as failure:
        _stop(str(failure))
    _finish(report, out)


@app.command()
def peers(
    model: Annotated[str, typer.Option(help="Model directory, or a name Livery knows.")] = ("smollm2-135m-instruct"),
    server: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(SERVERS[:-1])} or {SERVERS[-1]}; repeatable; all by default."),
    ] = None,
    adapters: Annotated[int, typer.Option(min=1, help="Random adapters to write and serve.")] = 8,
    rank: Annotated[int, typer.Option(min=1, help="Their rank, on all linear modules.")] = 16,
    streams: Streams = 16,
    requests: Requests = 32,
    rounds: Rounds = 3,
    warm_up: WarmUp = 16,
    prompt_words: PromptWords = 64,
    max_tokens: MaxTokens = 32,
    check: Check = False,
    seed: Seed = 0,
    timeout: Timeout = 300.0,
    folder: Annotated[Path | None, typer.Option(help="For adapters and server logs.")] = None,
    environment: Annotated[Path | None, typer.Option(help="vLLM's virtual environment.")] = None,
    vllm_bind: Annotated[str, typer.Option(help="VLLM_CPU_OMP_THREADS_BIND, e.g. auto, 0-1.")] = "auto",
    vllm_dtype: Annotated[str, typer.Option(help="vLLM's --dtype.")] = "float32",
    vllm_arguments: Annotated[str, typer.Option(help="More arguments for vLLM, as one string.")] = "",
    llama_cpp: Annotated[Path | None, typer.Option(help="Folder with llama.cpp's build.")] = None,
    llama_cpp_arguments: Annotated[str, typer.Option(help="More arguments for llama.cpp's server.")] = "",
    livery_arguments: Annotated[str, typer.Option(help="More arguments for `livery serve`.")] = "",
    livery_variant: Annotated[
        list[str] | None, typer.Option(help="NAME=ARGUMENTS of one more Livery server; repeatable.")
    ] = None,
    sleep: Annotated[Sleep, typer.Option(help="Stop idle servers (SIGSTOP) while another runs.")] = Sleep.AUTO,
    out: Out = None,
) -> None:
    """Launch Livery, vLLM for CPU and llama.cpp's server with the same random adapters, measure them in turn."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave no server behind
    setup = PeersSetup(
        model=model,
        folder=folder or default_environment().parent / "runs",
        environment=VllmEnvironment(environment or default_environment()),
        servers=_servers(server),
        adapters=adapters,
        rank=rank,
        streams=streams,
        bind=vllm_bind,
        dtype=vllm_dtype,
        sleep=sleep,
        livery_arguments=livery_arguments,
        vllm_arguments=vllm_arguments,
        llama_cpp=LlamaCppEnvironment(llama_cpp),
        llama_cpp_arguments=llama_cpp_arguments,
        variants=dict(_pair(variant) for variant in livery_variant or ()),
    )
    workload = Workload(streams, requests, prompt_words, max_tokens, seed=seed)
    plan = Plan(rounds, warm_up, tuple(Scenario), check=check, timeout=timeout)
    machine = describe_machine()
    try:
        with SideBySide(setup, Console(stderr=True)) as side_by_side:
            stage = side_by_side.stage()
            subjects = asyncio.run(find_subjects(side_by_side.targets, side_by_side.adapters, plan.timeout))
            report = _run(subjects, plan, workload, stage, machine, {})
            stage.leave()
            report.extra["servers"] = side_by_side.facts(stage)
    except (TargetUnusable, ServerFailed, EnvironmentFailed, ValueError) as failure:
        _stop(str(failure))
    _finish(report, out)


@app.command("install-peers")
def install_peers(
    environment: Annotated[Path | None, typer.Option(help="Where to install vLLM.")] = None,
    llama_cpp: Annotated[Path | None, typer.Option(help="Where to build llama.cpp.")] = None,
) -> None:
    """Install vLLM for CPU and build llama.cpp's server, as `peers` does when they are missing; minutes, once."""
    console = Console(stderr=True)
    try:
        VllmEnvironment(environment or default_environment()).ensure(console)
        LlamaCppEnvironment(llama_cpp).ensure(console)
    except EnvironmentFailed as failure:
        _stop(str(failure))


def _run(
    subjects: tuple[Subject, ...],
    plan: Plan,
    workload: Workload,
    stage: Stage,
    machine: Machine,
    extra: dict[str, Any],
) -> Report:
    origin = Origin.here(_own_version(), machine)
    with RequestBar(request_count(subjects, plan, workload)) as bar:
        outcome = asyncio.run(Benchmark(subjects, plan, workload, stage, bar, _api_key()).run())
    return build_report(outcome, plan, workload, origin, extra)


def _finish(report: Report, out: Path | None) -> None:
    """Print, write, and end with code 1 if any request failed: a number with errors is no result."""
    print_report(report, Console())
    if out is not None:
        report.write(out)
        Console(stderr=True).print(f"everything measured is in {out}")
    if report.failed_requests:
        _stop(f"{report.failed_requests} requests failed")


def _targets(options: Sequence[str]) -> list[Target]:
    targets = [Target(*option.partition("=")[::2]) for option in options]
    if len({target.name for target in targets}) != len(targets):
        raise ValueError("two targets have the same name; name them apart: --target NAME=URL")
    return targets


def _servers(chosen: Sequence[str] | None) -> tuple[str, ...]:
    unknown = set(chosen or ()) - set(SERVERS)
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: expected {', '.join(SERVERS)}")
    return tuple(name for name in SERVERS if not chosen or name in chosen)


def _pair(option: str) -> tuple[str, str]:
    name, given, arguments = option.partition("=")
    if not name or not given:
        raise typer.BadParameter(f"--livery-variant {option!r}: expected NAME=ARGUMENTS, as in int8='--weights int8'")
    return name, arguments


def _api_key() -> str | None:
    # Not an option: the command line is part of every report.
    return os.environ.get("LIVERY_BENCH_API_KEY")


def _own_version() -> str:
    try:
        return version("livery")
    except PackageNotFoundError:
        return "unknown"


def _stop(message: str) -> NoReturn:
    Console(stderr=True).print(f"[red]{escape(message)}[/]")
    raise typer.Exit(1)
