"""Names that climb, clear screens or end in a verb: of adapters, files, sources, aliases and versions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hostile.taking import GOOD, INTAKE, Shop
from livery_adapters.fetching import SourcePolicy, parse_source
from livery_adapters.library import from_directory
from livery_adapters.registry import AliasTarget
from livery_adapters.tensor_file import CONFIG_NAME

ALLOWED = ("hf://good-org/", "s3://bucket/team", "/srv/adapters")
Attempt = Callable[[Shop, str], object]  # raises, or gives an awaitable that does


@dataclass(frozen=True)
class NameCase:
    """One bad name in one place, and how it must be refused."""

    where: str
    text: str
    code: str
    says: str

    @property
    def title(self) -> str:
        return f"{self.where}: {self.text[:40]!r}"


def attempt(shop: Shop, case: NameCase) -> object:
    """Use the name where it belongs. Raises, or gives an awaitable that does."""
    return _WHERE[case.where](shop, case.text)


def _adapter(shop: Shop, name: str) -> object:
    return shop.library.add(name, from_directory(shop.root / GOOD, [shop.root]), INTAKE)


def _part(shop: Shop, name: str) -> object:
    with shop.library.store.incoming() as incoming:
        incoming.write(CONFIG_NAME, b"{}")
        incoming.write(name, b"x")
    return None


def _source(shop: Shop, text: str) -> object:
    return SourcePolicy(ALLOWED).check(parse_source(text))


def _alias(shop: Shop, name: str) -> object:
    return shop.library.registry.set_alias(name, [AliasTarget(GOOD, 1.0)], "user")


def _target(shop: Shop, name: str) -> object:
    return shop.library.registry.set_alias("canary", [AliasTarget(name, 1.0)], "user")


def _version(shop: Shop, text: str) -> object:
    return shop.library.activate(GOOD, text)


def _unknown(shop: Shop, name: str) -> object:
    return shop.library.retire(name)


def _blob(shop: Shop, digest: str) -> object:
    return shop.library.store.path(digest)


_WHERE: dict[str, Attempt] = {
    "adapter": _adapter,
    "file": _part,
    "source": _source,
    "alias": _alias,
    "alias target": _target,
    "version": _version,
    "retired": _unknown,
}

_LETTERS = "use up to 128 letters"
BAD_NAMES = (
    ("../../etc/passwd", _LETTERS),
    ("/etc/passwd", _LETTERS),
    ("a/../b", _LETTERS),
    ("a//b", _LETTERS),
    ("a/.", _LETTERS),
    (".hidden", _LETTERS),
    ("-rf", _LETTERS),
    ("", _LETTERS),
    ("a" * 129, _LETTERS),
    ("a b", _LETTERS),
    ("a\n", _LETTERS),
    ("a\0b", _LETTERS),
    ("\x1b[2J", _LETTERS),
    ("a\\b", _LETTERS),
    ("a%2e%2e", _LETTERS),
    ("gооd", _LETTERS),  # two letters that only look like o
    ("a@12345678", _LETTERS),
    ("a+b", _LETTERS),
    ("*", _LETTERS),
    ("a/activate", "'activate' is reserved"),
    ("versions", "'versions' is reserved"),
    ("tiny-llama", "the base model has this name"),
    ("\ud800", _LETTERS),
)
_PARTS = (
    "../adapter_config.json",
    "/etc/passwd",
    "adapter_config.json/../x",
    "ADAPTER_CONFIG.JSON",
    "adapter_model.safetensors\0.png",
    "adapter_model.bin",
    "",
    "a" * 5000,
)
_SOURCES = (
    ("/srv/adapters/../../etc", "bad_source", "'..' part"),
    ("/srv/adapters//x", "bad_source", "an empty, '.'"),
    ("/etc", "source_not_allowed", "'/etc'"),
    ("/srv/adapters2/x", "source_not_allowed", "'/srv/adapters2/x'"),
    ("srv/adapters/x", "bad_source", "is no source"),
    ("~/adapters", "bad_source", "is no source"),
    ("file://evil.example/srv/adapters/x", "bad_source", "names a host"),
    ("file:///srv/adapters/%2e%2e/x", "bad_source", "an escape"),
    ("FILE:///etc", "source_not_allowed", "'/etc'"),
    ("http://169.254.169.254/latest/meta-data", "bad_source", "never fetched"),
    ("https://user:secret@evil.example/x", "bad_source", "never fetched"),
    ("ftp://evil.example/x", "bad_source", "never fetched"),
    ("git+ssh://evil.example/x", "bad_source", "never fetched"),
    ("data://text/plain", "bad_source", "never fetched"),
    ("s3://bucket/team2/x", "source_not_allowed", "s3://bucket/team2/x"),
    ("s3://bucket/team/../../x", "bad_source", "'..' part"),
    ("s3://key:secret@bucket/team", "bad_source", "credentials come from the environment"),
    ("s3://bucket/team?versionId=1", "bad_source", "a query"),
    ("s3://", "bad_source", "names no bucket"),
    ("hf://evil-org/x", "source_not_allowed", "hf://evil-org/x"),
    ("hf://good-org", "bad_source", "names no repository"),
    ("hf://good-org/../evil-org/x", "bad_source", "'..' part"),
    ("hf://good-org/x@../../main", "bad_source", "no branch"),
    ("hf://good-org/x@main\nX-Header: 1", "bad_source", "unprintable"),
    ("hf://good-org/" + "x" * 2000, "bad_source", "over 1024"),
    ("", "bad_source", "is empty"),
)
_VERSIONS = (
    ("../1", "is no number"),
    ("0", "is no number"),
    ("-1", "is no number"),
    ("9" * 400, "has no version"),
    ("%", "is no number"),
    ("' OR 1=1 --", "is no number"),
    ("deadbeef", "has no version 'deadbeef'"),
    ("\ud800", "is no number"),
    ("", "is no number"),
)

CASES = (
    *(NameCase("adapter", name, "invalid_name", says) for name, says in BAD_NAMES),
    *(NameCase("alias", name, "invalid_name", says) for name, says in BAD_NAMES),
    NameCase("alias", GOOD, "name_taken", "is an adapter"),
    *(NameCase("alias target", name, "invalid_alias", "") for name in ("../good", "nobody", "canary", "\ud800")),
    *(NameCase("file", name, "unexpected_file", "is no file of an adapter") for name in _PARTS),
    NameCase("file", CONFIG_NAME + "\n", "unexpected_file", "is no file of an adapter"),
    *(NameCase("source", text, code, says) for text, code, says in _SOURCES),
    *(NameCase("version", text, "unknown_version", "") for text, _ in _VERSIONS),
    *(
        NameCase("retired", name, "unknown_adapter", "no adapter named")
        for name in ("../good", "nobody", "\ud800", "%")
    ),
)
