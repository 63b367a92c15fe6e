"""Where an adapter may be fetched from: a source's text parsed into one form, and what the operator allows.

    /srv/adapters/pirate   file:///srv/adapters/pirate      a directory of this machine
    hf://org/name[@revision][/folder]                       a model repository of the Hugging Face hub
    s3://bucket/prefix   gs://bucket/prefix   az://container/prefix      an object store

Nothing here touches a disk or a network, except that a directory is compared with the allowed ones by where links
lead too. Texts are compared segment by segment, never as strings: `s3://bucket/team` doesn't allow `s3://bucket/team2`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from livery_adapters.names import OPERATOR_TENANT
from livery_adapters.refusal import AdapterRefused

TENANT = "{tenant}"  # in an allowed source: the name of whichever tenant asks
OBJECT_SCHEMES = ("s3", "gs", "az")
_FORMS = (
    "/DIRECTORY, hf://ORG/NAME[@REVISION][/FOLDER], s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
)
_MAX_LENGTH = 1024

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}")
_HUB_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


class SourceNotAllowed(AdapterRefused):
    """The operator doesn't allow this source, or not to this tenant."""

    def __init__(self, source: Source, tenant: str = OPERATOR_TENANT) -> None:
        whose = "" if tenant == OPERATOR_TENANT else f" for tenant {tenant!r}"
        remedy = (
            str(source)
            if tenant == OPERATOR_TENANT
            else f"and a place of each tenant's own, as in s3://bucket/{TENANT}/"
        )
        super().__init__(
            "source_not_allowed",
            f"this server may not fetch from {str(source)!r}{whose}; its operator can allow it with --allow-source "
            f"{remedy}",
        )


@dataclass(frozen=True, slots=True)
class DirectorySource:
    """A directory of this machine, absolute. Links in it may lead to below `roots`, or below itself if none.

    `shown` is what to call it where that isn't its path.
    """

    path: Path
    roots: tuple[Path, ...] = ()
    shown: str = ""

    def __str__(self) -> str:
        return self.shown or str(self.path)


@dataclass(frozen=True, slots=True)
class HubSource:
    """A model repository of the hub: `repo` is org/name, `revision` a branch, tag or commit, `folder` below it."""

    repo: str
    revision: str | None = None
    folder: str = ""

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo}{revision}{self.folder and '/' + self.folder}"


@dataclass(frozen=True, slots=True)
class ObjectSource:
    """A prefix of an object store: `scheme` is s3, gs or az, `bucket` the bucket or container, `prefix` may be ''."""

    scheme: str
    bucket: str
    prefix: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}{self.prefix and '/' + self.prefix}"


Source = DirectorySource | HubSource | ObjectSource


@dataclass(frozen=True, slots=True)
class _Place:
    """Any source or prefix of sources: the scheme ('file' for directories) and the segments of the path."""

    scheme: str
    segments: tuple[str, ...]
    revision: str | None = None

    def covers(self, other: _Place) -> bool:
        return (
            self.scheme == other.scheme
            and self.segments == other.segments[: len(self.segments)]
            and self.revision in (None, other.revision)
        )


def parse_source(text: str, folder: Path | None = None) -> Source:
    """A source from its text; a relative path is one below `folder`, and no message says where that is.

    Raises AdapterRefused (bad_source).
    """
    if folder is not None and not text.startswith("/") and not _SCHEME.fullmatch(text):
        _check_plain(text)
        return DirectorySource(folder.joinpath(*_segments(text, text)), shown=text)
    place = _parse(text)
    segments = place.segments
    if place.scheme == "file":
        return DirectorySource(Path("/", *segments))
    if place.scheme == "hf":
        if len(segments) < 2:
            raise _bad(text, "names no repository; write hf://ORG/NAME")
        return HubSource("/".join(segments[:2]), place.revision, "/".join(segments[2:]))
    if not segments:
        raise _bad(text, f"names no bucket; write {place.scheme}://BUCKET/PREFIX")
    return ObjectSource(place.scheme, segments[0], "/".join(segments[1:]))


class SourcePolicy:
    """The sources that the operator allows: those below one of the given prefixes.

    Whatever is fetched is fetched with the server's own credentials. So a tenant may name only what is below a prefix
    with `{tenant}` in it, which stands for its name; the operator may name what is below any, its own name `default`.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        """`allowed`: sources as in `parse_source`, of any depth: `hf://`, `hf://org/`, `s3://bucket/team`, `/srv`,
        `s3://bucket/{tenant}/`.

        With a revision, a hub prefix allows that revision only. Raises ValueError for one that can't be understood.
        """
        self._allowed = tuple(allowed)
        try:
            self._places(OPERATOR_TENANT)
        except AdapterRefused as refused:
            raise ValueError(f"--allow-source: {refused.message}") from None

    def check(self, source: Source, tenant: str = OPERATOR_TENANT) -> Source:
        """The source as it may be fetched for a tenant. Raises SourceNotAllowed."""
        places = self._places(tenant)
        if isinstance(source, DirectorySource):
            roots = tuple(Path("/", *place.segments) for place in places if place.scheme == "file")
            real = Path(os.path.realpath(source.path))
            if not any(
                source.path.is_relative_to(root) or real.is_relative_to(os.path.realpath(root)) for root in roots
            ):
                raise SourceNotAllowed(source, tenant)
            return replace(source, roots=roots)
        place = _parse(str(source))
        if not any(allowed.covers(place) for allowed in places):
            raise SourceNotAllowed(source, tenant)
        return source

    def _places(self, tenant: str) -> list[_Place]:
        """What a tenant may name something below. Raises AdapterRefused (bad_source)."""
        own = [text for text in self._allowed if tenant == OPERATOR_TENANT or TENANT in text]
        return [_parse(text.replace(TENANT, tenant)) for text in own]


def _check_plain(text: str) -> None:
    if not text or len(text) > _MAX_LENGTH or not text.isprintable():
        raise _bad(text, f"is empty, over {_MAX_LENGTH} characters or has unprintable ones; write {_FORMS}")


def _parse(text: str) -> _Place:
    _check_plain(text)
    url = _SCHEME.fullmatch(text)
    if url is None:
        if not text.startswith("/"):
            raise _bad(text, f"is no source; write {_FORMS}")
        return _Place("file", _segments(text, text[1:]))
    scheme, rest = url[1].lower(), url[2]
    if any(character in rest for character in "?#%\\"):
        raise _bad(text, "has a query, a fragment, an escape or a backslash; write the plain path")
    if scheme == "file":
        if not rest.startswith("/"):
            raise _bad(text, "names a host or a relative path; write file:///DIRECTORY")
        return _Place("file", _segments(text, rest[1:]))
    if scheme == "hf":
        return _hub(text, rest)
    if scheme not in OBJECT_SCHEMES:
        raise _bad(text, f"is of a kind that is never fetched; write {_FORMS}")
    segments = _segments(text, rest)
    if segments and not _BUCKET.fullmatch(segments[0]):
        raise _bad(text, "has a bucket name that no store accepts; credentials come from the environment, never here")
    return _Place(scheme, segments)


def _hub(text: str, rest: str) -> _Place:
    """`refs/pr/1` is the one shape of revision with slashes; a branch with slashes is named by its commit."""
    head, at, tail = rest.partition("@")
    revision = None
    if at:
        if head.count("/") != 1:
            raise _bad(text, "has an @ that does not follow ORG/NAME; write hf://ORG/NAME@REVISION/FOLDER")
        parts = tail.split("/")
        count = 3 if parts[0] == "refs" else 1
        if len(parts) < count or not all(_REVISION.fullmatch(part) and ".." not in part for part in parts[:count]):
            raise _bad(text, "has a revision that is no branch, tag or commit of letters, digits, '.', '_' and '-'")
        revision = "/".join(parts[:count])
        head = "/".join([head, *parts[count:]])
    segments = _segments(text, head)
    if not all(_HUB_NAME.fullmatch(segment) for segment in segments):
        raise _bad(text, "has a name that the hub doesn't allow; use letters, digits, '.', '_' and '-'")
    return _Place("hf", segments, revision)


def _segments(text: str, path: str) -> tuple[str, ...]:
    path = path.removesuffix("/")
    segments = tuple(path.split("/")) if path else ()
    if any(segment in ("", ".", "..") for segment in segments):
        raise _bad(text, "has an empty, '.' or '..' part; write the plain path")
    return segments


def _bad(text: str, reason: str) -> AdapterRefused:
    return AdapterRefused("bad_source", f"source {_shown(text)} {reason}")


def _shown(text: str) -> str:
    """A source for a message: short, and without what may be a password or a signature."""
    return repr(re.sub(r"//[^/]*@", "//…@", text.partition("?")[0])[:120])
