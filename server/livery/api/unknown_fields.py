"""Fields that no route knows: ignored as OpenAI's clients expect, but counted and logged, or refused where asked for.

A misspelt field changes nothing and says nothing; `livery_unknown_fields` and the log show that somebody sends one.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

from livery.metrics import Metrics
from livery.refusals import UnknownParameter

log = logging.getLogger("livery.api")

MAX_LOGGED = 100  # different names; after that only the count grows
MAX_NAME = 64  # characters shown of one
PLACE = re.compile(r"\.\d+\.")  # in a list


class UnknownFields:
    """What to do with unknown fields, for one application. `strict`: they are refused."""

    def __init__(self, metrics: Metrics, *, strict: bool) -> None:
        self._metrics = metrics
        self._strict = strict
        self._logged: set[str] = set()

    def met(self, names: Iterable[str]) -> None:
        """A request had these. Raises UnknownParameter where fields must be known."""
        met = list(names)
        self._metrics.unknown_fields.inc(len(met))
        if met and self._strict:
            raise UnknownParameter(met[0][:MAX_NAME])
        for name in met[:MAX_LOGGED]:
            shown = PLACE.sub(".N.", name[:MAX_NAME])
            if shown not in self._logged and len(self._logged) < MAX_LOGGED:
                self._logged.add(shown)
                log.info("a request has the field %s, which is unknown and ignored; said once", ascii(shown))
