"""Fetching adapters: parse a source, ask the policy, stream its two files into the store.

source = SourcePolicy(["hf://my-org/", "/srv/adapters"]).check(parse_source(text))
with store.incoming() as incoming:
    origin = fetch(source, incoming, lambda done, total: None)
"""

from __future__ import annotations

from livery_adapters.fetching.directory import copy_directory, open_adapter_files
from livery_adapters.fetching.interrupt import Interrupt, Interrupted, InterruptibleSink, Sink
from livery_adapters.fetching.network import DEFAULT_NETWORK, NetworkLimits, Origin, Progress
from livery_adapters.fetching.spec import (
    DirectorySource,
    HubSource,
    ObjectSource,
    Source,
    SourceNotAllowed,
    SourcePolicy,
    parse_source,
)

__all__ = [
    "DirectorySource",
    "HubSource",
    "Interrupt",
    "Interrupted",
    "NetworkLimits",
    "ObjectSource",
    "Origin",
    "Progress",
    "Source",
    "SourceNotAllowed",
    "SourcePolicy",
    "copy_directory",
    "fetch",
    "open_adapter_files",
    "parse_source",
]


def fetch(
    source: Source,
    incoming: Sink,
    progress: Progress,
    limits: NetworkLimits = DEFAULT_NETWORK,
    interrupt: Interrupt | None = None,
) -> Origin:
    """Stream the two files of a source into `incoming`, and nothing else; it is left unsealed.

    Blocks on disk and network: use a worker thread. Asks no policy: the caller did. Raises AdapterRefused:
    source_unreachable, source_not_found, source_forbidden, missing_config, missing_weights, pickle_only, incomplete
    (changed meanwhile, or cut short), too_large, and what reading a directory or `Incoming` raises. No message
    holds a credential or a signed address. Raises Interrupted some time after `interrupt` was set, at the latest when
    the network's next silence ends.
    """
    interrupt = interrupt or Interrupt()
    incoming = InterruptibleSink(incoming, interrupt)
    if isinstance(source, DirectorySource):
        copy_directory(source.path, incoming, source.roots or [source.path])
        return Origin(str(source))
    # The network libraries are loaded when they are needed: most servers read directories only.
    if isinstance(source, HubSource):
        from livery_adapters.fetching.hub import fetch_hub

        return fetch_hub(source, incoming, progress, limits, interrupt)
    from livery_adapters.fetching.object_store import fetch_objects

    return fetch_objects(source, incoming, progress, limits)
