"""Pages of which a script writes a part, between two marks."""

from __future__ import annotations


def around(page: str, begin: str, end: str) -> tuple[str, str]:
    """What of the page stands before that part and after it, marks included. Raises ValueError where it has none."""
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no {begin} … {end}, between which its table stands")
    return f"{before}{begin}\n", f"\n{end}{after}"
