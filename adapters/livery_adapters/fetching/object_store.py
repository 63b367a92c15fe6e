"""A prefix of an object store (S3 and what speaks like it, Google Cloud, Azure), fetched by obstore.

Credentials, region and endpoint come from the environment, under each vendor's own names (AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, AWS_ALLOW_HTTP, GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME, ...). Each file is looked
at first; then it is read in parts, every one on condition that the object is still that one, and both are looked at
once more at the end: a prefix has no version of its own, so that is what makes the two files one state.

obstore's HTTP client follows redirects of the store, leaving the signature out on another host. The store is one that
the operator configured, so where it sends a client is its word.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, PreconditionError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, S3Store

from livery_adapters.beside import BESIDE_NAMES, is_wanted
from livery_adapters.fetching.interrupt import Sink
from livery_adapters.fetching.network import (
    NetworkLimits,
    Origin,
    Progress,
    Transfer,
    changed,
    forbidden,
    not_found,
    unreachable,
)
from livery_adapters.fetching.spec import ObjectSource
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tensor_file import CONFIG_NAME, FILE_NAMES

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ClientConfig, RetryConfig

# The client's time limit covers a whole answer, so answers are kept short enough for it to notice a stalled one.
_PART = 8 << 20

# Options given to a client replace all that the environment says of it, so this one is read here.
_ALLOW_HTTP = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ENDPOINT_URL_S3")

ObjectStore = S3Store | GCSStore | AzureStore


@dataclass(frozen=True, slots=True)
class _State:
    """What an object was when it was looked at; `tag` and `version` are the store's, `size` in bytes."""

    size: int
    tag: str | None
    version: str | None
    modified: str


def fetch_objects(
    source: ObjectSource, incoming: Sink, progress: Progress, limits: NetworkLimits, *, one_state: bool = True
) -> Origin:
    """Stream the two files of a prefix into `incoming`. Raises AdapterRefused; see `livery_adapters.fetching`.

    `one_state=False` is for a caller that knows the digest of what is to come: the objects may be written anew
    meanwhile, as they are with the same bytes whenever somebody takes the same version in.
    """
    with _explained(source):
        store = open_store(source, limits)
    states = _look(store, source)
    for name, state in states.items():
        incoming.check_size(name, state.size)
    transfer = Transfer(source, sum(state.size for state in states.values()), progress, limits)
    for name, state in states.items():
        incoming.begin(name, state.size)
        for part in _parts(store, source, name, state if one_state else replace(state, tag=None, version=None)):
            incoming.write(name, part)
            transfer.came(len(part))
    if one_state and _look(store, source) != states:
        raise changed(source)
    pinned = {name: state.version or state.tag or state.modified for name, state in states.items()}
    return Origin(f"{source} ({', '.join(f'{name} {tag}' for name, tag in pinned.items())})", pinned)


def open_store(source: ObjectSource, limits: NetworkLimits) -> ObjectStore:
    """The store, at the source's prefix. Touches no network. Raises what obstore raises."""
    for name in _ENDPOINTS:
        if name in os.environ and not re.fullmatch(r"https?://[A-Za-z0-9.:_\[\]-]+(/\S*)?", os.environ[name]):
            raise ValueError(f"{name} is no http or https address")  # obstore would panic
    client: ClientConfig = {
        "allow_http": os.environ.get(_ALLOW_HTTP[source.scheme], "").lower() in ("1", "true", "on", "yes"),
        "connect_timeout": timedelta(seconds=limits.connect_s),
        "timeout": timedelta(seconds=limits.stall_s),
    }
    retry: RetryConfig = {
        "max_retries": limits.retries,
        "retry_timeout": timedelta(seconds=limits.stall_s),
        "backoff": {
            "init_backoff": timedelta(seconds=limits.backoff_s),
            "max_backoff": timedelta(seconds=10),
            "base": 2,
        },
    }
    prefix = source.prefix or None
    if source.scheme == "s3":
        return S3Store(source.bucket, prefix=prefix, client_options=client, retry_config=retry)
    if source.scheme == "gs":
        return GCSStore(source.bucket, prefix=prefix, client_options=client, retry_config=retry)
    return AzureStore(source.bucket, prefix=prefix, client_options=client, retry_config=retry)


def _look(store: ObjectStore, source: ObjectSource) -> dict[str, _State]:
    """What the objects are now. Raises AdapterRefused, naming which of the two files isn't there."""
    found = {name: state for name in FILE_NAMES if (state := _state(store, source, name)) is not None}
    if not found:
        raise not_found(source, "check the bucket and the prefix, which must hold the two files themselves")
    for name in FILE_NAMES:
        if name not in found:
            code = "missing_config" if name == CONFIG_NAME else "missing_weights"
            raise AdapterRefused(code, f"no {name} in {source}; upload the directory PEFT's save_pretrained made")
    for name in BESIDE_NAMES:
        state = _state(store, source, name)
        if state is not None and is_wanted(name, state.size):
            found[name] = state
    return found


def _state(store: ObjectStore, source: ObjectSource, name: str) -> _State | None:
    """What one object is now, None where it isn't. Raises AdapterRefused."""
    with _explained(source):
        try:
            meta = obstore.head(store, name)
        except FileNotFoundError:
            return None
    return _State(meta["size"], meta["e_tag"], meta["version"], meta["last_modified"].isoformat())


def _parts(store: ObjectStore, source: ObjectSource, name: str, state: _State) -> Iterator[memoryview]:
    """The object's bytes in order, as long as it stays the one it was. Raises AdapterRefused."""
    for begin in range(0, state.size, _PART):
        end = min(begin + _PART, state.size)
        options: GetOptions = {"range": (begin, end)}
        if state.tag is not None:
            options["if_match"] = state.tag
        if state.version is not None:
            options["version"] = state.version
        with _explained(source):
            try:
                part = memoryview(obstore.get(store, name, options=options).bytes())
            except FileNotFoundError:
                raise changed(source) from None
        if len(part) != end - begin:
            raise changed(source)
        yield part


@contextmanager
def _explained(source: ObjectSource) -> Iterator[None]:
    """Errors of the store as refusals; their own texts hold addresses, which may be signed, and are dropped."""
    try:
        yield
    except PreconditionError:
        raise changed(source) from None
    except (PermissionDeniedError, UnauthenticatedError):
        raise forbidden(
            source, "give the server credentials that may read it, by the environment variables of the store's vendor"
        ) from None
    except (BaseError, ValueError, OSError) as error:
        raise unreachable(source, f"the store failed or is not configured ({type(error).__name__})") from None
