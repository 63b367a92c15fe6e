"""Every page's links lead to what is there: files of this project, and headings of its pages."""

from __future__ import annotations

import json
import re
import subprocess
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    """Those that are written for readers: no test's data."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True
    )
    if listed.returncode:  # an unpacked archive
        return sorted(ROOT.rglob("*.md"))
    return sorted(ROOT / name for name in listed.stdout.decode().split("\n") if name)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text("utf-8")) or "", re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_pages_links_lead_somewhere(page: Path) -> None:
    lost = []
    for found in LINK.finditer(CODE.sub("", page.read_text("utf-8"))):
        target = found[1] or found[2]
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            lost.append(target)
    assert not lost


def named_in_the_tree(design: str) -> list[str]:
    """The paths of DESIGN.md's tree. A name at the margin is from the top; an indented one is below the folder that
    the nearest line with less indentation begins with; lines indented further than names go on with a description.
    """
    tree = design[design.index("## The house") :].split("```")[1]
    found, folders = [], {-1: ""}
    for line in filter(str.strip, tree.splitlines()):
        indent = len(line) - len(line.lstrip())
        if indent > 4:
            continue
        folders = {depth: folder for depth, folder in folders.items() if depth < indent}
        head = re.split(r" {3,}", line.lstrip())[0]
        names = takewhile(lambda word: re.search(r"[./]|^[A-Z]", word), head.split())
        paths = [folders[max(folders)] + name for name in names]
        folders[indent] = paths[0]
        found += paths
    return found


def test_what_the_tree_of_the_design_names_is_there() -> None:
    named = named_in_the_tree((ROOT / "DESIGN.md").read_text("utf-8"))
    assert {"server/livery/engine/lora/", "tests/ray_serve/", ".ci/run"} <= set(named), "it isn't read as it is meant"
    assert [path for path in named if not list(ROOT.glob(path))] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_no_table_is_cut_by_an_empty_line(page: Path) -> None:
    """What comes after it is text: a table begins with its heads and a line of dashes."""
    lines = CODE.sub(lambda code: "" if code[0].startswith("```") else code[0], page.read_text("utf-8")).split("\n")
    cut = [
        number
        for number, (before, line, after) in enumerate(zip(lines, lines[1:], lines[2:], strict=False), 1)
        if before.startswith("|")
        and not line.strip()
        and after.startswith("|")
        and not re.match(r"\|[-:| ]+$", lines[number + 2])
    ]
    assert not cut


def test_the_extraction_that_is_shown_is_the_kept_one() -> None:
    """What `livery adapters extract` prints of a text, beside what the benchmark wrote of the same command."""
    found = json.loads((ROOT / "loadtest" / "results" / "2026-11-22-extraction-curve-cpu.json").read_text())
    names = {"base alone": found["base"], "with the adapter": found["auto"], "tuned model": found["tuned"]}
    page = (ROOT / "server" / "docs" / "adapters.md").read_text("utf-8")
    for name, one in names.items():
        far = [f"{one['kl']:.4f}", f"{one['same_best']:.1%}"] if "kl" in one else []
        (shown,) = re.findall(rf"^ {name}  +(.*)$", page, re.MULTILINE)
        assert shown.split() == [f"{one['perplexity']:.3f}", *far]
    least, most = found["auto"]["ranks"]
    assert f"which chose {least} to {most}" in page
    peak = found["peak_mb_above_imports"]
    assert f"in {found['seconds']:.0f} s on one core of a busy machine, with {peak:.0f} MB" in page


def test_the_table_of_quantised_bases_is_the_kept_runs() -> None:
    """Its speeds and bytes stand in server/docs/serving.md as they were measured."""
    page = (ROOT / "server" / "docs" / "serving.md").read_text()
    kept = json.loads((ROOT / "loadtest" / "results" / "2026-11-22-quantization-cpu.json").read_bytes())
    measured = [row for row in kept["rows"] if row["runs"] and not row["same_as"]]
    assert len(measured) > 5
    for row in measured:
        speeds = ["{:.2f} ({:.2f} to {:.2f})".format(*row["speed"][rows]) for rows in ("1", "16")]
        size = f"{row['weight_bytes'] / 2**20:.0f} MiB ({row['bytes_ratio']:.2f})"
        errors = [f"{max(row['parity'].values()):.0e}"] if row["parity"] else [""]
        cells = " | ".join([size, *speeds, *errors])
        assert cells.strip() in page, f"{row['name']}: {cells}"
