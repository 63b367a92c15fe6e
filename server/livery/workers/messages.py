"""What a server's processes say to each other: the parent, which has the engine and all that is shared, and workers.

Requests, deltas and adapters are said in the engine's own words (livery.engine.messages). Ids of requests are the
workers' own: each adds its number and a count to its, so that two that are alike don't meet.
"""

from __future__ import annotations

import msgspec

from livery.activity import Event, Lately
from livery.engine.base import AdapterRef, Asker, EngineInfo, EngineStats, TokenDelta
from livery.engine.messages import Abort, Keep, Submit, Unload
from livery.metrics.growth import Growth
from livery.staging import Staged
from livery.superseding import Superseded
from livery.survey import House
from livery.tenancy import Principal
from livery.tenancy.gate import Held, Wish
from livery.tenancy.limits import Rates
from livery.under_way import Row
from livery.workers.failures import Failure
from livery.workers.link import Answer, Refusal
from livery_adapters.effect import AdapterEffect

BEAT_S = 0.5

# -- from the parent, without being asked ------------------------------------------------------------


class Begin(msgspec.Struct, frozen=True, tag=True):
    """The first message to a new worker. `settings` are the server's, as `Settings` reads them.

    `listener` and `admin` are descriptors of sockets that it has inherited, `connections` that of Connections.
    """

    number: int
    settings: dict[str, object]
    model_path: str
    model_name: str
    info: EngineInfo
    listener: int
    admin: int | None
    connections: int


class Deltas(msgspec.Struct, frozen=True, tag=True):
    """What came for this worker's requests in one turn."""

    deltas: list[TokenDelta]


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A request ended so."""

    request_id: str
    failure: Failure


class Tell(msgspec.Struct, frozen=True, tag=True):
    """Say what you counted."""

    number: int


class Renew(msgspec.Struct, frozen=True, tag=True):
    """Another worker changed adapters of these names, or who may come in, or ends requests."""

    number: int
    names: list[str]
    keys: bool
    superseded: Superseded | None


class Incoming(msgspec.Struct, frozen=True, tag=True):
    """All names whose first version is on its way into other workers."""

    names: list[Staged]


class Announce(msgspec.Struct, frozen=True, tag=True):
    """All workers serve: say so to whoever started the server."""


class Drain(msgspec.Struct, frozen=True, tag=True):
    """The server was told to stop by this signal. Said twice: now."""

    signal: int


class Used(msgspec.Struct, frozen=True, tag=True):
    """How far somebody's limits per minute are used."""

    whose: str
    rates: Rates


class EngineEnded(msgspec.Struct, frozen=True, tag=True):
    """The engine is at its end for good, and so is the server."""

    reason: str


# -- from a worker -------------------------------------------------------------------------------------


class Alive(msgspec.Struct, frozen=True, tag=True):
    """Its loop gets on; said every BEAT_S."""


class Serving(msgspec.Struct, frozen=True, tag=True):
    """It takes requests."""


class Unable(msgspec.Struct, frozen=True, tag=True):
    """It can't serve; it ends after this."""

    reason: str


class Load(msgspec.Struct, frozen=True, tag=True):
    call: int
    adapter: AdapterRef
    asker: Asker


class Stats(msgspec.Struct, frozen=True, tag=True):
    call: int


class Ready(msgspec.Struct, frozen=True, tag=True):
    call: int


class Count(msgspec.Struct, frozen=True, tag=True):
    """Count a request of this principal; what it holds is known by `hold` until `Leave`."""

    call: int
    hold: int
    principal: Principal


class Enter(msgspec.Struct, frozen=True, tag=True):
    """Let a request in. `counted` is the hold of what was counted at the door, 0 for none."""

    call: int
    hold: int
    principal: Principal
    wish: Wish
    counted: int


class Resize(msgspec.Struct, frozen=True, tag=True):
    call: int
    hold: int
    principal: Principal
    prompt_tokens: int
    answer_tokens: int


class Begun(msgspec.Struct, frozen=True, tag=True):
    hold: int
    prompt_tokens: int


class Spend(msgspec.Struct, frozen=True, tag=True):
    hold: int
    tokens: int


class Leave(msgspec.Struct, frozen=True, tag=True):
    """What is held is given back; one that isn't held is passed over."""

    hold: int


class Grown(msgspec.Struct, frozen=True, tag=True):
    """What a worker counted since it told last, and what runs there; `asked` is the number of a `Tell`, or 0."""

    asked: int
    growth: Growth
    events: list[Event]
    running: list[Row]


class Renewed(msgspec.Struct, frozen=True, tag=True):
    """What a `Renew` of this number told is known."""

    number: int


class Spread(msgspec.Struct, frozen=True, tag=True):
    """Have the other workers know what was changed, as with `Renew`."""

    call: int
    names: list[str]
    keys: bool
    superseded: Superseded | None


class TakesIn(msgspec.Struct, frozen=True, tag=True):
    """All names whose first version is on its way into this worker."""

    names: list[Staged]


class Forget(msgspec.Struct, frozen=True, tag=True):
    """These are no more."""

    adapters: list[str]
    tenants: list[str]


class AskBooks(msgspec.Struct, frozen=True, tag=True):
    call: int


class AskLately(msgspec.Struct, frozen=True, tag=True):
    """Of a tenant, by its account, or of all."""

    call: int
    account: str | None


class AskRunning(msgspec.Struct, frozen=True, tag=True):
    call: int


class AskHouse(msgspec.Struct, frozen=True, tag=True):
    call: int


class Look(msgspec.Struct, frozen=True, tag=True):
    """What is held of the room?"""

    call: int


# -- answers -------------------------------------------------------------------------------------------


class Loaded(Answer, frozen=True, tag=True):
    effect: AdapterEffect | None


class Pong(Answer, frozen=True, tag=True):
    stats: EngineStats


class Readiness(Answer, frozen=True, tag=True):
    ready: bool


class Granted(Answer, frozen=True, tag=True):
    """It is counted, let in or resized, or the others know it."""


class Books(Answer, frozen=True, tag=True):
    """What all workers counted and that shows, and every name that something is counted of."""

    all: Growth
    adapters: list[str]
    tenants: list[str]


class Doings(Answer, frozen=True, tag=True):
    lately: Lately


class Running(Answer, frozen=True, tag=True):
    """What is under way on all workers."""

    rows: list[Row]


class Told(Answer, frozen=True, tag=True):
    house: House


class Room(Answer, frozen=True, tag=True):
    held: Held


ToWorker = (
    Begin
    | Deltas
    | Failed
    | Renew
    | Incoming
    | Announce
    | Drain
    | Used
    | EngineEnded
    | Loaded
    | Pong
    | Readiness
    | Granted
    | Tell
    | Books
    | Doings
    | Running
    | Told
    | Room
    | Refusal
)
ToParent = (
    Alive
    | Serving
    | Unable
    | Submit
    | Abort
    | Load
    | Unload
    | Keep
    | Stats
    | Ready
    | Count
    | Enter
    | Resize
    | Begun
    | Spend
    | Leave
    | Look
    | Grown
    | Renewed
    | Spread
    | TakesIn
    | Forget
    | AskBooks
    | AskLately
    | AskRunning
    | AskHouse
)
