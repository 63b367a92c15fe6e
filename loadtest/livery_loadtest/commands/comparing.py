"""`livery bench compare`: is B faster than A, by how much, and how sure is that?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from livery_loadtest.commands.ending import stop
from livery_loadtest.compare import compare
from livery_loadtest.pairing import NotComparable
from livery_loadtest.report.comparison import print_comparison, write_comparison, write_comparison_page
from livery_loadtest.report.result import ResultUnreadable, read_result
from livery_loadtest.writable import Unwritable, check_file

HELP = """Compare two results of one workload, request by request: ratios, 95 % intervals, and how sure a difference is.

Each is a JSON file that `run` or `suite` wrote; one file twice compares two targets of it.
"""


def compare_results(
    a: Annotated[Path, typer.Argument(help="What is compared with.")],
    b: Annotated[Path, typer.Argument(help="What is compared.")],
    target_a: Annotated[str, typer.Option(help="The target of A, where it has several.")] = "",
    target_b: Annotated[str, typer.Option(help="The target of B, where it has several.")] = "",
    json: Annotated[Path | None, typer.Option(help="Write it to this JSON file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as a page.")] = None,
) -> None:
    """Compare; the command's help is HELP."""
    try:
        check_file("--json", json)
        check_file("--html", html)
        found = compare(read_result(a), read_result(b), target_a, target_b)
    except (NotComparable, ResultUnreadable, Unwritable) as failure:
        stop(str(failure))
    print_comparison(found, Console())
    if json is not None:
        write_comparison(found, json)
    if html is not None:
        write_comparison_page(found, html)
