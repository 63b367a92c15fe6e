"""`livery bench engine`: options in, the suite run, tables, JSON and a picture out."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from livery import __version__
from livery.commands.asking import CommandFailed
from livery.models import DEMO_MODEL, base_digest, cache_dir, resolve_model
from livery_loadtest.writable import Unwritable, check_file

GROUPS = ("values", "decode", "prefill", "options", "serving")


def engine(
    model: Annotated[str, typer.Option(help="Model directory, hub id, .gguf or the demo base.")] = DEMO_MODEL,
    only: Annotated[list[str] | None, typer.Option(help=f"{', '.join(GROUPS)}; repeatable; all by default.")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Also say where a decode step's time goes.")] = False,
    rounds: Annotated[
        int, typer.Option(min=0, help="Rounds of each row; its variants take turns within. 0: each group's own number.")
    ] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    kernels: Annotated[str, typer.Option(help="auto, or torch for plain torch operations.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Threads on CPU; 0: chosen.")] = 0,
    folder: Annotated[Path | None, typer.Option(help="For the random adapters, written once.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write everything measured to this JSON file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the rows against their bars into this SVG file.")] = None,
) -> None:
    """Measure the engine alone, in this process: adapters against none, in turn, and against what is physical.

    Speeds are ratios within one run, with the lowest and highest round; floors come from shapes and from what this
    machine reads and computes at best. The machine should have nothing else to do.
    """
    unknown = sorted(set(only or ()) - set(GROUPS))
    if unknown:
        raise typer.BadParameter(f"--only {', '.join(unknown)}: expected {', '.join(GROUPS)}")
    try:
        check_file("--out", out)
        check_file("--plot", plot)
    except Unwritable as refused:
        raise typer.BadParameter(str(refused)) from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended from outside, it keeps what it measured too
    # As in the engine's own process (livery.engine.client); torch reads it when it is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from livery.bench.bars import Row
    from livery.bench.plot import write
    from livery.bench.report import build_report, print_findings, shown
    from livery.bench.sizes import Sizes
    from livery.bench.suite import Group, Suite
    from livery.engine.base import EngineConfig
    from livery.engine.kernels import describe
    from livery_loadtest.origin import Origin

    origin = Origin.here(__version__)
    resolved = resolve_model(model)
    config = EngineConfig(
        str(resolved.path),
        base_digest=base_digest(resolved.path),
        device=device,
        dtype=dtype,
        kernels=_kernels(kernels),
        threads=threads,
    )
    sizes = Sizes().with_rounds(rounds) if rounds else Sizes()
    console = Console(stderr=True)
    with console.status("starting", refresh_per_second=1) as status:

        def show(row: Row) -> None:
            console.print(f"{escape(row.name)}: {shown(row.value)}  [dim]{escape(row.note)}[/]", highlight=False)

        suite = Suite(config, folder or cache_dir() / "bench", sizes, lambda what: status.update(escape(what)), show)
        try:
            findings = suite.run(frozenset(map(Group, only or GROUPS)), profile)
        finally:  # of a run that was interrupted, what it had measured
            status.stop()
            print_findings(suite.findings, Console())
            compiled = {name: text for name, text in describe().items() if name != "library"}
            if out is not None:
                build_report(suite.findings, sizes, origin, compiled).write(out)
                console.print(f"everything measured is in {out}")
            if plot is not None:
                write(suite.findings.rows, f"Livery {__version__}, {resolved.name}, {origin.machine.cpu}", plot)
                console.print(f"the rows against their bars are in {plot}")
    if findings.failures:
        failed = "; ".join(f"{name}: {why}" for name, why in findings.failures.items())
        raise CommandFailed(f"not everything was measured. {failed}")


def _kernels(name: str) -> Literal["auto", "torch"]:
    match name:
        case "auto" | "torch":
            return name
    raise typer.BadParameter(f"--kernels {name}: expected auto or torch")
