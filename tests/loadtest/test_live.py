"""What a run shows of itself while it goes on, on a terminal and in a file."""

from __future__ import annotations

import re
from io import StringIO

from rich.console import Console

from livery_loadtest.drive import Glance
from livery_loadtest.live import LiveBar

NOW = Glance(at=1.0, sent=3, running=2, done=1, failed=0, tokens=90)


def shown(terminal: bool) -> str:
    console = Console(file=StringIO(), force_terminal=terminal, width=120)
    with LiveBar(console) as bar:
        bar.begin("a [1/2]", 8)(NOW)
        bar.begin("b [2/2]", 4)(NOW)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_a_file_gets_a_line_for_each_thing_as_it_begins() -> None:
    lines = shown(terminal=False).splitlines()
    assert [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in lines] == ["a [1/2], requests: 8", "b [2/2], requests: 4"]


def test_a_terminal_has_one_bar_with_the_figures_of_the_moment() -> None:
    text = shown(terminal=True)
    assert "b [2/2]" in text
    assert "2 running" in text
    assert "requests: " not in text
