"""What each route is for, which decides who may call it (livery.tenancy.MAY): said once for each router."""

from __future__ import annotations

import re
from collections.abc import Iterable

from fastapi import APIRouter
from starlette.routing import Route

from livery.tenancy import Purpose

LOOKING = ("GET", "HEAD", "OPTIONS")  # methods that change nothing


class Access:
    """The purposes of the routes of one application. A path of none of them asks for a key as well: `rest`."""

    def __init__(self, routers: Iterable[tuple[APIRouter, Purpose]], rest: Purpose = "ask") -> None:
        self._rest = rest
        # Paths without parameters are found by name, by far the most requests; the others in the order of the router.
        self._plain: dict[str, dict[str, Purpose]] = {}
        self._patterns: list[tuple[re.Pattern[str], frozenset[str], Purpose]] = []
        for router, purpose in routers:
            for route in router.routes:
                if not isinstance(route, Route):
                    raise TypeError(f"{route} has no path of its own to say a purpose for")
                methods = frozenset(route.methods or ())
                if "{" in route.path:
                    self._patterns.append((route.path_regex, methods, purpose))
                else:
                    self._plain.setdefault(route.path, {}).update(dict.fromkeys(methods, purpose))

    def purpose(self, method: str, path: str) -> Purpose:
        """What a request is for; one with a method that its path doesn't take counts as the path's others."""
        plain = self._plain.get(path)
        if plain is not None:
            return plain.get(method, next(iter(plain.values())))
        fits = [(methods, purpose) for pattern, methods, purpose in self._patterns if pattern.match(path)]
        for methods, purpose in fits:
            if method in methods:
                return purpose
        return fits[0][1] if fits else self._rest
