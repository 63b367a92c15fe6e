"""Whether an engine's loop gets on, told by a thread beside it and judged in the parent.

Four times a second the engine's process says how long its loop has been where it is, on a socket of its own that no
step stands before. The parent takes silence, or a step that is far older than such steps have been, for a hang. Ages
are measured within one process: no two clocks are compared. What is slow for want of a core is no hang
(livery.engine.starvation): how long a step was ready to run and didn't is told beside its age, the parent looks for the
same in a process that is silent, and time for which the parent itself didn't run is left out of the silence.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import zmq

from livery.engine.starvation import Starvation

BEAT_S = 0.25
QUIET_S = 1.25  # of silence, or in a step that is unusual, after which nothing new should come here
FIRST_STEPS = 3  # of one size, which may compile kernels and fill caches
FIRST_S = 180.0  # for a step while nothing is known of any
GENEROUS = 20.0  # times as long as the longest such step lately is a hang,
UNUSUAL = 5.0  # times as long is reason enough to send requests elsewhere
SPARING, LONG_S = 3.0, 30.0  # GENEROUS times goes up to so many seconds, and so many times beyond
OWN_SHARE = 0.5  # of the time after which a step or silence may be a hang: so much of it must have had its cores
FORGET = 0.99  # the longest step fades by this with each one after it


class Beat(msgspec.Struct, frozen=True, array_like=True):
    """How the loop stands. `age_s`: since it began the step under way, or last looked for messages.

    `tokens` are computed in that step, and `allowed_s` is how long such steps may take by the record. `ended` names a
    thread beside the loop that is gone. For `waited_s` of its age it was ready to run and had no core.
    """

    tokens: int
    age_s: float
    allowed_s: float
    ended: str = ""
    waited_s: float = 0.0

    @property
    def ran_s(self) -> float:
        return self.age_s - self.waited_s


@dataclass(frozen=True, slots=True)
class Judgement:
    """`ready`: requests may come. `hang`: why the process has to be ended; empty while it needn't."""

    ready: bool = True
    hang: str = ""


def judge(silent_s: float, beat: Beat | None, hang_s: float, starved_s: float = 0.0) -> Judgement:
    """What to make of the newest beat, `silent_s` seconds after it came, of which it had no core for `starved_s`.

    Less than `hang_s` is never a hang.
    """
    if silent_s >= hang_s and silent_s - starved_s >= OWN_SHARE * hang_s:
        return Judgement(ready=False, hang=f"its process has given no sign of life for {silent_s:.1f} s")
    if beat is not None and beat.ended:
        return Judgement(ready=False, hang=f"its thread {beat.ended} has ended")
    if beat is not None and beat.age_s > hang_s and beat.ran_s > max(OWN_SHARE * hang_s, beat.allowed_s):
        where = f"one step over {beat.tokens} tokens" if beat.tokens else "one place between steps"
        usual = f", where such steps may take {max(hang_s, beat.allowed_s):.1f} s" if beat.tokens else ""
        return Judgement(ready=False, hang=f"its loop has been in {where} for {beat.age_s:.1f} s{usual}")
    usual_s = QUIET_S if beat is None else max(QUIET_S, beat.allowed_s * UNUSUAL / GENEROUS)
    return Judgement(ready=silent_s < QUIET_S and (beat is None or beat.age_s <= usual_s))


class StepTimes:
    """How long steps took lately, by the power of two that their tokens come to; 0 tokens: rounds without a step."""

    def __init__(self) -> None:
        self._taken: dict[int, tuple[int, float]] = {}  # size -> how many there were, the longest of them lately

    def learn(self, tokens: int, seconds: float) -> None:
        count, longest = self._taken.get(tokens.bit_length(), (0, 0.0))
        self._taken[tokens.bit_length()] = count + 1, max(seconds, longest * FORGET)

    def allowed(self, tokens: int) -> float:
        """Seconds: a generous multiple of what such steps took, a smaller one beyond LONG_S.

        One slow step, as of a machine that swaps, must not hide the next hang for minutes. After few steps of a size
        LONG_S at least, and longer where steps of other sizes let that be expected.
        """
        count, longest = self._taken.get(tokens.bit_length(), (0, 0.0))
        if count >= FIRST_STEPS:
            return max(min(GENEROUS * longest, LONG_S), SPARING * longest)
        expected = self._expected(tokens.bit_length())
        return FIRST_S if expected is None else max(LONG_S, SPARING * longest, min(FIRST_S, SPARING * expected))

    def _expected(self, size: int) -> float | None:
        """The longest of the next size that is known, in proportion where that one is smaller; None for rounds without
        a step, and where no size is known.
        """
        known = {other: longest for other, (count, longest) in self._taken.items() if other and count >= FIRST_STEPS}
        if not size or not known:
            return None
        other = min(known, key=lambda other: (other < size, abs(other - size)))
        return float(known[other] * 2 ** max(0, size - other))


class Pulse:
    """The engine's side: the loop marks where it is, a thread tells.

    `tokens` says how many the step under way computes, `ended` which thread beside the loop is gone; both are set once
    there is something to ask.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self.tokens: Callable[[], int] = int
        self.ended: Callable[[], str] = str
        self._context, self._address = context, address
        self._times = StepTimes()
        self._since = time.monotonic()
        self._starved = Starvation()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def begin(self) -> None:
        """A round of the loop begins."""
        self._since = time.monotonic()

    def end(self) -> None:
        """It is over."""
        now = time.monotonic()
        self._times.learn(self.tokens(), now - self._since)
        self._since = now

    def stop(self) -> None:
        """Say nothing more; also where nothing was said yet."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        socket = self._context.socket(zmq.PUSH)
        socket.setsockopt(zmq.CONFLATE, 1)  # a parent that doesn't listen now wants the newest one later
        socket.connect(self._address)
        encoder = msgspec.msgpack.Encoder()
        while not self._stopping.wait(BEAT_S):
            socket.send(encoder.encode(self._beat()))
        socket.close(linger=0)

    def _beat(self) -> Beat:
        since, tokens = self._since, self.tokens()
        age = time.monotonic() - since
        waited = min(self._starved.during(since), age)
        return Beat(tokens, age, self._times.allowed(tokens), self.ended(), waited)
