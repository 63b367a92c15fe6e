"""What came of the set-ups, in words and as an exit status."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console

from foreign_parts import not_run

GOOD, ABSENT = "yes", "can be had here"


def verdict(found: Mapping[str, Mapping[str, str]], console: Console) -> int:
    """Say what was right, wrong and not tested at all; the exit status."""
    absent = {name: checks[ABSENT] for name, checks in found.items() if ABSENT in checks}
    wrong = sum(said != GOOD for name, checks in found.items() if name not in absent for said in checks.values())
    status = max([int(wrong > 0), *(not_run(name, why) for name, why in absent.items())])
    if tried := [name for name in found if name not in absent]:
        console.print(f"{', '.join(tried)}: {f'{wrong} wrong' if wrong else 'all as it should be'}")
    return status
