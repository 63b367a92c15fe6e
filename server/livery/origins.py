"""Where adapters that clients name or send come from: sources that the operator allows, uploads, its own folder."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from livery.intakes import Intakes
from livery.refusals import InvalidParameter
from livery_adapters.fetching import DirectorySource, SourcePolicy, fetch, parse_source
from livery_adapters.incoming import Incoming
from livery_adapters.library import Fill, from_nothing
from livery_adapters.refusal import AdapterRefused
from livery_adapters.weightless import BASE_SOURCE

Upload = AsyncIterator[tuple[str, bytes]]  # file name, piece of it; an empty piece begins the file

NO_DIRECTORIES = (
    "directories of the server's machine are its operator's to take adapters from; send the files "
    "(POST /v1/adapters/NAME/versions), or name a hub or an object store: hf://, s3://, gs://, az://"
)


class Origins:
    """What `policy` allows to fetch. `root` is the folder that relative paths start from."""

    def __init__(self, policy: SourcePolicy, root: Path | None, intakes: Intakes) -> None:
        self._policy = policy
        self._root = root
        self._intakes = intakes

    def below_root(self, path: str) -> Path:
        """Where `path` leads once links are followed. Raises InvalidParameter when that is outside."""
        if self._root is None:
            raise InvalidParameter("This server was started without an adapter folder (--adapters).", "lora_path")
        try:
            resolved = (self._root / path).resolve()
            resolved.is_dir()  # raises what resolving lets pass
        except (OSError, ValueError, RuntimeError):  # too long, a null byte, a loop of links
            raise InvalidParameter("lora_path is not a usable path.", "lora_path") from None
        if resolved == self._root or not resolved.is_relative_to(self._root):
            raise InvalidParameter(
                "lora_path must be a directory below the adapter folder (--adapters), links followed.", "lora_path"
            )
        return resolved

    def fill(self, text: str, tenant: str, *, local: bool) -> Fill:
        """Takes in what a source holds, on a tenant's account; `local`: also a directory of this machine.

        "base" holds no weights: a profile over the base, which is allowed to all.

        Raises AdapterRefused.
        """
        if text == BASE_SOURCE:
            return from_nothing
        parsed = parse_source(text, self._root)
        if isinstance(parsed, DirectorySource) and not local:
            raise AdapterRefused("source_not_allowed", NO_DIRECTORIES)
        source = self._policy.check(parsed, tenant)
        if isinstance(source, DirectorySource) and not os.path.isdir(source.path):
            below = "; relative sources start at the server's adapter folder (--adapters)" if self._root else ""
            raise AdapterRefused("source_not_found", f"there is no directory {text[:256]!r}{below}")

        async def fill(incoming: Incoming) -> str:
            origin = await self._intakes.run(
                tenant, lambda interrupt: fetch(source, incoming, _quiet, interrupt=interrupt)
            )
            return self.shown(origin.text)

        return fill

    def shown(self, origin: str) -> str:
        """Where the server's own folder is is nobody's business."""
        return origin.removeprefix(f"{self._root}/") if self._root is not None else origin


def from_upload(files: Upload) -> Fill:
    """Writes pieces of the two files as they arrive."""

    async def fill(incoming: Incoming) -> str:
        async for name, piece in files:
            if piece:
                await asyncio.to_thread(incoming.write, name, piece)
            else:  # a part begins
                await asyncio.to_thread(incoming.begin, name)
        return "upload"

    return fill


def kind_of(source: str) -> str:
    """What the registry calls a source of this form."""
    scheme = source.partition("://")[0] if "://" in source else ""
    return {"hf": "hub", "s3": "store", "gs": "store", "az": "store"}.get(scheme, "api")


def _quiet(_done: int, _total: int) -> None:
    """Nobody watches this download's progress."""
