"""One replica: a queue, prompts read one after the other, rows that decode together, and adapters that come and go.

Rows are processor sharing: all of them get a token each step, and a step takes what the plan's costs say for the rows,
their context and their distinct adapters. So a replica is told by one number, the tokens that a row has had since the
start, and only arrivals, prompts' ends, answers' ends and loads are events. Decoding stands still while a prompt is
read, as in the plan. A request holds its adapter from when it comes to its end, and from its prompt on room for as many
keys and values as it will need; nothing is preempted.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from heapq import heappop, heappush

from livery.scale.plan.roofline import StepCosts

Places = dict[int, set[int]]  # by adapter the replicas that have it, in one sense or other
NEVER = float("inf")
NONE = -1
DEVICE, COMING, HOST, STORE = range(4)  # where a request found its adapter
ROUNDING = 1e-6  # of a token


@dataclass(frozen=True, slots=True)
class Spec:
    """A replica's speed and room: `host_load` and `store_load` are the seconds that an adapter's copy takes."""

    costs: StepCosts
    kv_tokens: int
    max_running: int
    slots: int
    host_slots: int
    host_load: float
    store_load: float


@dataclass(frozen=True, slots=True)
class Jobs:
    """What replicas know of requests, as lists by number; `first` and `last` are filled in, in seconds."""

    adapters: list[int]
    prompts: list[int]
    outputs: list[int]
    reading: list[float]  # seconds
    first: list[float]
    last: list[float]
    found: list[int]


class Adapters:
    """Adapters of one replica: on the device those in use and, the longest unused first, those that aren't.

    The host keeps what was there last, and begins with the adapters that are asked for most (the lowest numbers). One
    is copied at a time, in order; where all on the device are in use the next waits.
    """

    def __init__(self, spec: Spec, index: int, holders: Places, announced: Places) -> None:
        self._spec, self._index, self._holders, self._announced = spec, index, holders, announced
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._host = OrderedDict[int, None].fromkeys(reversed(range(spec.host_slots)))
        self._waiting: dict[int, list[int]] = {}  # requests whose adapter isn't there, by adapter
        self._unplaced: deque[int] = deque()
        self.copies: deque[tuple[float, int]] = deque()  # when each that is under way is there
        self._free_at = 0.0

    def take(self, adapter: int, request: int, now: float) -> int:
        """Hold it for a request; where it isn't there yet, the request comes back from `arrived`."""
        self._announced.setdefault(adapter, set()).add(self._index)
        if adapter in self._waiting:
            self._waiting[adapter].append(request)
            return COMING
        if adapter in self._users:
            self._users[adapter] += 1
            return DEVICE
        if adapter in self._idle:
            del self._idle[adapter]
            self._users[adapter] = 1
            return DEVICE
        self._waiting[adapter] = [request]
        found = HOST if adapter in self._host else STORE
        if not self._place(adapter, now):
            self._unplaced.append(adapter)
        self._holders.setdefault(adapter, set()).add(self._index)
        return found

    def arrived(self, now: float) -> list[int]:
        """The requests whose adapters are there by now."""
        ready: list[int] = []
        while self.copies and self.copies[0][0] <= now:
            _, adapter = self.copies.popleft()
            waiting = self._waiting.pop(adapter)
            self._users[adapter] = len(waiting)
            ready += waiting
        return ready

    def leave(self, adapter: int, now: float) -> None:
        """A request that held it has ended."""
        self._users[adapter] -= 1
        if not self._users[adapter]:
            del self._users[adapter]
            self._idle[adapter] = None
            if self._unplaced:
                self._place(self._unplaced.popleft(), now)

    def _place(self, adapter: int, now: float) -> bool:
        """Begin its copy, in the place of the longest unused if need be."""
        if len(self._users) + len(self._idle) + len(self.copies) >= self._spec.slots:
            if not self._idle:
                return False
            gone, _ = self._idle.popitem(last=False)
            self._holders[gone].discard(self._index)
            self._forget(gone)
        kept = self._host
        seconds = self._spec.host_load
        if adapter in kept:
            kept.move_to_end(adapter)
        else:
            seconds += self._spec.store_load
            kept[adapter] = None
            if len(kept) > self._spec.host_slots:
                self._forget(kept.popitem(last=False)[0])
        self._free_at = max(self._free_at, now) + seconds
        self.copies.append((self._free_at, adapter))
        return True

    def _forget(self, adapter: int) -> None:
        """It has left one memory; nothing more is said of it unless it is in the other, or wanted."""
        if not any(adapter in place for place in (self._host, self._users, self._idle, self._waiting)):
            self._announced.get(adapter, set()).discard(self._index)


class Replica:
    """Serves the requests that it is given."""

    def __init__(self, spec: Spec, jobs: Jobs, index: int, holders: Places, announced: Places) -> None:
        self.load = 0  # requests given and not ended
        self.busy = 0.0  # seconds in which it read or decoded
        self._spec, self._jobs = spec, jobs
        self._adapters = Adapters(spec, index, holders, announced)
        self._clock = 0.0
        self._ready: deque[int] = deque()
        self._reading, self._read_at = NONE, NEVER
        self._running: list[tuple[float, int]] = []  # heap of (tokens passed at its end, request)
        self._passed = 0.0  # tokens that a row has had since the start
        self._keys = 0.0
        self._reserved = 0
        self._distinct: dict[int, int] = {}
        self._step = 0.0

    def give(self, request: int, now: float) -> None:
        """A request comes."""
        self._advance(now)
        self.load += 1
        found = self._adapters.take(self._jobs.adapters[request], request, now)
        self._jobs.found[request] = found
        if found == DEVICE:
            self._ready.append(request)
        self._begin(now)

    def next_event(self) -> float:
        """When something happens here if nobody comes."""
        if self._reading != NONE:
            return self._read_at
        at = self._clock + max(0.0, self._running[0][0] - self._passed) * self._step if self._running else NEVER
        copies = self._adapters.copies
        return min(at, copies[0][0]) if copies else at

    def happen(self, now: float) -> None:
        """What is due at `now`."""
        self._advance(now)
        self._ready += self._adapters.arrived(now)
        if self._reading != NONE and self._read_at <= now:
            self._end_prompt(now)
        while self._running and self._running[0][0] <= self._passed + ROUNDING:
            self._end_answer(heappop(self._running)[1], now)
        self._begin(now)

    def _advance(self, now: float) -> None:
        since = now - self._clock
        self._clock = now
        if self._reading != NONE:
            self.busy += since
        elif self._running:
            self.busy += since
            tokens = since / self._step
            self._passed += tokens
            self._keys += tokens * len(self._running)

    def _begin(self, now: float) -> None:
        """Read the next prompt if there is room, and find out what a step takes."""
        jobs = self._jobs
        if self._reading == NONE and self._ready and len(self._running) < self._spec.max_running:
            request = self._ready[0]
            needed = jobs.prompts[request] + jobs.outputs[request]
            if self._reserved + needed <= self._spec.kv_tokens:
                self._ready.popleft()
                self._reserved += needed
                self._reading, self._read_at = request, now + jobs.reading[request]
        self._step = self._spec.costs.decode(len(self._running), self._keys, len(self._distinct))

    def _end_prompt(self, now: float) -> None:
        request, self._reading = self._reading, NONE
        jobs = self._jobs
        jobs.first[request] = now
        adapter = jobs.adapters[request]
        self._keys += jobs.prompts[request]
        self._distinct[adapter] = self._distinct.get(adapter, 0) + 1
        # The prompt's last row gave the first token.
        heappush(self._running, (self._passed + jobs.outputs[request] - 1, request))

    def _end_answer(self, request: int, now: float) -> None:
        jobs = self._jobs
        jobs.last[request] = now
        adapter = jobs.adapters[request]
        self._keys = max(0.0, self._keys - jobs.prompts[request] - jobs.outputs[request] + 1)
        self._reserved -= jobs.prompts[request] + jobs.outputs[request]
        self._distinct[adapter] -= 1
        if not self._distinct[adapter]:
            del self._distinct[adapter]
        self._adapters.leave(adapter, now)
        self.load -= 1
