"""`livery bench peers`: Livery and others with the same adapters, launched, checked, and measured in turn."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from livery_loadtest.commands import options
from livery_loadtest.commands.ending import ENDS, Exit, leave, own_version, status, stop
from livery_loadtest.commands.running import FAILURES, Task, find, parse_targets, run_task
from livery_loadtest.fanout import Fanout
from livery_loadtest.kinds import Closed, Distinct, Fixed
from livery_loadtest.live import LiveBar
from livery_loadtest.machine import describe_machine
from livery_loadtest.origin import Origin, document, write_json
from livery_loadtest.peers import EnvironmentFailed
from livery_loadtest.peers.device import Device
from livery_loadtest.peers.launching import PEFT_MIXED, SERVERS, PeersSetup, SideBySide
from livery_loadtest.peers.llama_cpp import LlamaCppEnvironment
from livery_loadtest.peers.ratios import BASE, MIXED, SINGLE, ratio_table, ratios
from livery_loadtest.peers.values import alone, answers, compare, requests
from livery_loadtest.peers.vllm import VllmEnvironment, default_environment
from livery_loadtest.record import Record
from livery_loadtest.servers import Sleep
from livery_loadtest.session import Manner, Served, Stage
from livery_loadtest.spec import Workload
from livery_loadtest.target import Target
from livery_loadtest.verify import Finding, Verification

BARS_AT = 16  # streams
PACKAGES = ("numpy", "msgspec", "httptools")
DeviceOption = Annotated[
    Device, typer.Option(help="What all servers compute on. auto: an NVIDIA GPU where the driver lists one.")
]
HELP = f"""Launch Livery and its peers with the same random adapters, check their values, measure them in turn.

Each peer runs at its best settings, which the report has with the reasons. A server of your own joins with --target.
{ENDS}
"""


def peers(
    model: Annotated[str, typer.Option(help="Model directory, or a name Livery knows.")] = "smollm2-135m-instruct",
    server: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(SERVERS[:-1])} or {SERVERS[-1]}; repeatable; all by default."),
    ] = None,
    target: options.Targets = None,
    adapters: Annotated[int, typer.Option(min=1, help="Random adapters to write and serve.")] = 8,
    rank: Annotated[int, typer.Option(min=1, help="Their rank, on all linear modules.")] = 16,
    streams: Annotated[int, typer.Option(min=1, help="Requests under way at once.")] = 16,
    requests: Annotated[int, typer.Option(min=1, help="Requests per repeat, workload and server.")] = 32,
    repeats: options.Repeats = 3,
    warm_up: Annotated[int, typer.Option(min=0, help="Requests before each, not counted.")] = 16,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens per prompt, about; all prompts differ.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens per answer.")] = 32,
    verify: options.Verify = 9,
    seed: Annotated[int, typer.Option(min=0, help="Seeds prompts.")] = 0,
    out: options.Out = Path("bench-peers"),
    folder: Annotated[Path | None, typer.Option(help="For adapters and server logs.")] = None,
    device: DeviceOption = Device.AUTO,
    environment: Annotated[Path | None, typer.Option(help="vLLM's virtual environment.")] = None,
    vllm_bind: Annotated[
        str,
        typer.Option(
            help="On CPUs: VLLM_CPU_OMP_THREADS_BIND, e.g. auto, 0-1.",
            show_default="all cores with AMX, otherwise auto",
        ),
    ] = "",
    vllm_dtype: Annotated[
        str, typer.Option(help="vLLM's --dtype.", show_default="float32 on CPUs without AMX, otherwise bfloat16")
    ] = "",
    vllm_arguments: Annotated[str, typer.Option(help="More arguments for vLLM, as one string.")] = "",
    vllm_variant: Annotated[
        list[str] | None,
        typer.Option(help="NAME=ARGUMENTS of one more vLLM server, which may begin with VARIABLE=VALUE; repeatable."),
    ] = None,
    llama_cpp: Annotated[Path | None, typer.Option(help="Folder with llama.cpp's build.")] = None,
    llama_cpp_arguments: Annotated[str, typer.Option(help="More arguments for llama.cpp's server.")] = "",
    livery_arguments: Annotated[str, typer.Option(help="More arguments for `livery serve`.")] = "",
    livery_variant: Annotated[
        list[str] | None, typer.Option(help="NAME=ARGUMENTS of one more Livery server; repeatable.")
    ] = None,
    sleep: Annotated[Sleep, typer.Option(help="Stop idle servers (SIGSTOP) while another runs.")] = Sleep.AUTO,
) -> None:
    """Compare; the command's help is HELP."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave no server behind
    on = device.chosen()
    setup = PeersSetup(
        model=model,
        folder=folder or default_environment().parent / "runs",
        environment=VllmEnvironment(environment or default_environment(on), device=on),
        servers=_servers(server),
        adapters=adapters,
        rank=rank,
        streams=streams,
        bind=vllm_bind,
        device=on,
        dtype=vllm_dtype,
        sleep=sleep,
        livery_arguments=livery_arguments,
        vllm_arguments=vllm_arguments,
        llama_cpp=LlamaCppEnvironment(llama_cpp, device=on),
        llama_cpp_arguments=llama_cpp_arguments,
        variants=dict(_pair(one, "--livery-variant", "int8='--weights int8'") for one in livery_variant or ()),
        vllm_variants=dict(_pair(one, "--vllm-variant", "bf16='--dtype bfloat16'") for one in vllm_variant or ()),
    )
    common = Workload(
        name=MIXED,
        seed=seed,
        arrivals=Closed(streams=streams),
        requests=requests,
        warm_up=warm_up,
        popularity=Distinct(),
        prompt=Fixed(tokens=prompt_tokens),
        output=Fixed(tokens=max_tokens),
    )
    try:
        manner = Manner(repeats=repeats, processes=Fanout(), verify=verify)
        ends = _compare(setup, common, parse_targets(target or []), manner, out)
    except FAILURES as failure:
        stop(str(failure))
    leave(ends)


def workloads(common: Workload) -> list[Workload]:
    """To the base alone, to all adapters in turn, and to the base from one stream with a quarter of the requests."""
    base = msgspec.structs.replace(common, name=BASE, base_share=1.0)
    few = -(-common.requests // 4)
    single = msgspec.structs.replace(base, name=SINGLE, arrivals=Closed(streams=1), requests=few)
    return [base, common, single]


def install_peers(
    environment: Annotated[Path | None, typer.Option(help="Where to install vLLM.")] = None,
    llama_cpp: Annotated[Path | None, typer.Option(help="Where to build llama.cpp.")] = None,
    device: DeviceOption = Device.AUTO,
) -> None:
    """Install vLLM and build llama.cpp's server, as `peers` does when they are missing; minutes, once."""
    console = Console(stderr=True)
    on = device.chosen()
    try:
        VllmEnvironment(environment or default_environment(on), device=on).ensure(console)
        LlamaCppEnvironment(llama_cpp, device=on).ensure(console)
    except EnvironmentFailed as failure:
        stop(str(failure))


def _compare(setup: PeersSetup, common: Workload, others: Sequence[Target], manner: Manner, out: Path) -> list[Exit]:
    machine = describe_machine()
    console = Console(stderr=True)
    with SideBySide(setup, console) as launched:
        stage = launched.stage()
        # Those of the base alone come last, so that a target has the same place, and colour, in every workload.
        subjects = sorted(find([*launched.targets, *others]), key=lambda one: not one.adapters)
        values = _check_values(subjects, stage, console)

        def settings() -> dict[str, dict[str, str]]:
            stage.leave()
            return {name: _shown(facts, launched.why(name)) for name, facts in launched.facts(stage).items()}

        task = Task(
            workloads=workloads(common),
            subjects=subjects,
            manner=manner,
            out=out,
            machine=machine,
            stage=stage,
            settings=settings,
            together=True,
        )
        results = {result.workload.name: result for result in run_task(task)}
        servers = launched.facts(stage)
    found = ratios(results, bars=setup.streams == BARS_AT)
    Console().print(ratio_table(found))
    measured = {"ratios": found, "values": values, "servers": servers}
    write_json(document("livery-peers/1", Origin.here(own_version(), machine), PACKAGES, measured), out / "peers.json")
    wrong = [Exit.FAILED for one in values.values() if one.wrong or one.failed]
    return wrong + [status(result, allow_errors=False) for result in results.values()]


def _check_values(subjects: Sequence[Served], stage: Stage, console: Console) -> dict[str, Verification]:
    """Every server's answers beside PEFT's, or beside the first server's where PEFT isn't among them."""
    said = {}
    with LiveBar(console) as bar:
        for subject in subjects:
            name = subject.target.name
            stage.enter(name)
            said[name] = asyncio.run(answers(subject, bar.begin(f"{name}: values", requests(subject))))
    reference = PEFT_MIXED if PEFT_MIXED in said else subjects[0].target.name
    found = {name: compare(reference, own, said[reference]) for name, own in said.items() if name != reference}
    for name, one in found.items():
        console.print(values_line(name, one, said[name], said[reference]), markup=False)
    return found


def values_line(name: str, one: Verification, own: Sequence[Record], reference: Sequence[Record]) -> str:
    """What came of one server's answers beside the reference's, in words."""
    said = (
        f"{name}: of {len(one.compared)} greedy answers {one.count(Finding.SAME)} equal {one.reference}'s, "
        f"{one.count(Finding.PARTED)} part from it midway, {len(one.wrong)} are another model's"
    )
    if one.failed:
        said += f", {len(one.failed)} failed (of {one.failed[0].model}: {one.failed[0].under_load})"
    if unanswered := one.count(Finding.UNANSWERED):
        said += f", {unanswered} have nothing to be compared with, as {one.reference} failed"
    if uncompared := alone(own, reference):
        said += f"; not compared, as only one of both lists them: {', '.join(uncompared)}"
    return said


def _shown(facts: Mapping[str, Any], why: str) -> dict[str, str]:
    """How a server was started, in the words of its report."""
    variables = " ".join(f"{key}={value}" for key, value in facts["environment"].items())
    return {"command": f"{variables} {facts['command']}".strip(), "memory_mib": str(facts["memory_mib"]), "why": why}


def _servers(chosen: Sequence[str] | None) -> tuple[str, ...]:
    unknown = set(chosen or ()) - set(SERVERS)
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: expected {', '.join(SERVERS)}")
    return tuple(name for name in SERVERS if not chosen or name in chosen)


def _pair(given: str, option: str, example: str) -> tuple[str, str]:
    name, separator, arguments = given.partition("=")
    if not name or not separator:
        raise typer.BadParameter(f"{option} {given!r}: expected NAME=ARGUMENTS, as in {example}")
    return name, arguments
