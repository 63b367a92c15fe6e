"""The README's commands can be typed as they stand there, one after the other."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

from typer.main import get_command

from livery.cli import app

ROOT = Path(__file__).parents[2]


def livery_commands() -> list[list[str]]:
    """Of the section whose commands run against `make serve`."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    section = page[page.index("\n## What it does") : page.index("\n## Speed")]
    blocks = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    typed = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [
        shlex.split(command, comments=True)
        for line in typed
        for command in re.split(r" && | \| ", line)
        if command.startswith("livery ")
    ]


def test_commands_and_options_are_there() -> None:
    assert len(livery_commands()) > 10
    for words in livery_commands():
        node = get_command(app)
        for word in words[1:]:
            node = getattr(node, "commands", {}).get(word, node)
        known = {option for parameter in node.params for option in parameter.opts}
        assert not {word for word in words if word.startswith("--")} - known, words


def test_files_that_commands_read_are_in_the_repository() -> None:
    read = {"--on", "--text", "--questions", "--profile"}
    for words in livery_commands():
        after = [word for option, word in pairwise(words) if option in read]
        paths = [word for word in words if "/" in word and "://" not in word]
        assert not [path for path in {*after, *paths} if not (ROOT / path).exists()], words


def test_versions_that_commands_name_were_added_before() -> None:
    added: dict[str, int] = {}
    for words in livery_commands():
        if words[1:3] == ["adapters", "train"] and "--as" in words:
            added[words[words.index("--as") + 1]] = 1
        if words[1:3] == ["adapters", "add"]:
            added[words[3]] = added.get(words[3], 0) + 1
        if words[1:3] == ["adapters", "activate"]:
            assert int(words[4]) <= added[words[3]], words
