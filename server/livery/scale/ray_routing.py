"""Where a request goes among replicas: ids of what it asks for, the order in which replicas suit it, and which ids a
replica says it has.

    learned.told(asked_id(headers, body))       # an ingress, of a request; learned.note(…) from its answer
    ranked(told, standing, busy_at)             # a router, of replicas that say announced.ids(…)

Who may have what under which name, the replica says. So an ingress learns from each answer which adapter that key's
name leads to, and goes by the adapter from then on, however many keys and aliases lead there; what it has not learned
it takes for the adapter's own name, where a replica has one of that name.

What is in a replica's memory comes first, unless that has far more than its share, by which hot adapters come to be on
several. Those that have as little to do follow by rendezvous hashing with bounded loads: every process that routes
finds the same one without asking anybody, cold adapters spread evenly, and another replica takes over only its own
share of them. (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998; Mirrokni, Thorup and
Zadimoghaddam, "Consistent hashing with bounded loads", 2018.) `livery plan --simulate` has it beside other policies.
Knows no Ray.
"""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import orjson

ID_DIGITS = 24
AND = "."  # between what was asked and the adapter that may be meant
UNEVEN = 1.25  # times the mean of requests under way that one replica may have
FEW = 8  # requests under way up to which replicas are alike, unless told otherwise: they are computed together
MOST_IDS = 4096  # that a replica remembers; each is told to Ray's controller while it counts
MOST_LEARNED = 65_536  # keys' names whose adapters an ingress remembers, some 200 bytes each
KEYS = (b"authorization", b"x-api-key")


def asked_id(headers: Iterable[tuple[bytes, bytes]], body: bytes) -> str:
    """What is known of a request before any answer: the same for the same key and model; empty where none is named.

    A digest of both, so that Ray's metrics and dashboard show no names, and what one key asks for has nothing to do
    with what another one calls the same; then the id of the adapter that has this very name. It decides nothing but
    the way: who may have what, the replica says.
    """
    model = _model(body)
    if model is None:
        return ""
    digest = hashlib.sha256()
    for name, value in headers:
        if name in KEYS:
            digest.update(len(value).to_bytes(8) + value)
    digest.update(b"\0" + model.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:ID_DIGITS] + AND + adapter_id(model)


def adapter_id(name: str) -> str:
    """What Ray goes by for an adapter, of its name in full."""
    return hashlib.sha256(b"adapter\0" + name.encode("utf-8", "surrogatepass")).hexdigest()[:ID_DIGITS]


def is_among(ids: Collection[str], told: str) -> bool:
    """Whether these ids of a replica are of what a request is told to be for."""
    return any(one in ids for one in told.split(AND))


class _Answered(OrderedDict[str, str]):
    """The adapter that each of the ids asked for lately led to, the longest unused first."""

    def note(self, asked: str, adapter: str | None, most: int) -> None:
        """What an answer said; None where it led to none. At most so many are remembered."""
        if adapter is None:
            self.pop(asked, None)
            return
        self[asked] = adapter
        self.move_to_end(asked)
        if len(self) > most:
            self.popitem(last=False)


class Learned:
    """What an ingress goes by. Use from one event loop."""

    def __init__(self, most: int = MOST_LEARNED) -> None:
        self._most = most
        self._adapters = _Answered()  # asked -> told

    def told(self, asked: str) -> str:
        """The id of the adapter; of what was asked before that is known; empty for the base, which all have."""
        return self._adapters.get(asked, asked)

    def note(self, asked: str, adapter: str | None) -> None:
        """What an answer said: the adapter's id, "" for the base, None where it ran on nothing."""
        if asked:
            self._adapters.note(asked, adapter, self._most)


def _model(body: bytes) -> str | None:
    """The `model` of a JSON object; None for anything else, which the replica will have its own words for."""
    if body.lstrip()[:1] != b"{":
        return None
    try:
        read = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    model = read.get("model")
    return model if isinstance(model, str) and model else None


@dataclass(frozen=True, slots=True)
class Standing:
    """A replica as a router sees it: whether it has what is asked for, and its requests under way."""

    replica: str
    has: bool
    ongoing: int


def ranked(told: str, standing: Sequence[Standing], busy_at: int) -> list[list[Standing]]:
    """The replicas in the order in which they suit a request; those of one rank suit it alike.

    Who has the adapter and isn't busy comes first, then who isn't busy; of either whoever has the least under way, and
    of those alike, as all with up to `busy_at` are, in the order that the id gives them: so where little is under way
    an adapter has one place. Busy is who has `busy_at` requests under way, and more than UNEVEN times what an even
    share would be: where all are over `busy_at`, going elsewhere shortens no queue, and each would load what the others
    have. Last come all alike, for requests that ask for no adapter and for those that nobody else takes.
    """
    ranks = []
    if told:
        even = (1 + sum(one.ongoing for one in standing)) / max(1, len(standing))
        free = [one for one in standing if one.ongoing < max(busy_at, UNEVEN * even)]
        drawn = sorted(free, key=lambda one: _draw(told, one), reverse=True)
        ranks = [[one] for one in sorted(drawn, key=lambda one: (not one.has, max(busy_at, one.ongoing)))]
    return [*ranks, list(standing)]


def _draw(told: str, one: Standing) -> bytes:
    """How well a replica suits a request, as chance has it: the same wherever it is asked.

    By the adapter where the replica has it; else by what was asked, as different tenants' adapters may have one name.
    """
    going_by = told.rpartition(AND)[2] if one.has else told.partition(AND)[0]
    return hashlib.sha256(f"{going_by}\0{one.replica}".encode()).digest()


class Announced:
    """The ids that a replica says it has: of requests under way, and of adapters that are in its memory.

    Use from one event loop.
    """

    def __init__(self, most: int = MOST_IDS) -> None:
        self._most = most
        self._under_way: Counter[str] = Counter()
        self._adapters = _Answered()  # id -> the adapter's name in full

    def begin(self, told: str) -> None:
        """A request came. Others for the same are to follow it, also before its adapter is loaded."""
        if asked := told.partition(AND)[0]:
            self._under_way[asked] += 1

    def end(self, told: str, adapter: str | None) -> None:
        """It is over; it ran on this adapter, None: on the base, or not at all."""
        asked = told.partition(AND)[0]
        if not asked:
            return
        self._under_way[asked] -= 1
        if not self._under_way[asked]:
            del self._under_way[asked]
        self._adapters.note(asked, adapter, self._most)

    def ids(self, in_memory: Collection[str]) -> frozenset[str]:
        """What is said, where these adapters are in memory, by their names in full.

        Of those that were asked for here alone: every replica's host memory may hold what nobody asked it for. And
        what was asked for them: other ingresses may not have learned it.
        """
        asked = {one: adapter for one, adapter in self._adapters.items() if adapter in in_memory}
        return frozenset(self._under_way) | asked.keys() | {adapter_id(name) for name in asked.values()}
