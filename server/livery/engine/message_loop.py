"""What the engine's own process does: messages in, one step, one message out, until told to stop."""

from __future__ import annotations

import gc
import logging
import math
import os
import threading

import msgspec
import zmq

from livery import logs
from livery.engine import messages as m
from livery.engine.base import ModelRefused, RequestRefused
from livery.engine.core import EngineCore
from livery.engine.pulse import Pulse
from livery.engine.runner import ModelRunner

IDLE_POLL_MS = 1000  # how often an idle engine looks whether its parent is still there
WAKE = b"wake"

log = logging.getLogger(__name__)


class EngineProcess:
    """The border around one EngineCore."""

    def __init__(self, address: str, parent_pid: int) -> None:
        self._parent_pid = parent_pid
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.connect(address)
        # Other threads wake an idle loop through a socket of their own, one at a time: zmq sockets aren't shared.
        self._wake_in = self._context.socket(zmq.PULL)
        self._wake_in.bind("inproc://wake")
        self._wake_out: zmq.Socket[bytes] | None = None
        self._waking = threading.Lock()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(m.ToEngine)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._wake_in, zmq.POLLIN)
        self._stopping = False
        self._pulse = Pulse(self._context, m.pulse_address(address))

    def run(self) -> int:
        """Serve until Stop or until the parent is gone; returns the exit status."""
        while not self._socket.poll(IDLE_POLL_MS):
            if os.getppid() != self._parent_pid:
                return 0
        start = self._decoder.decode(self._socket.recv())
        if not isinstance(start, m.Start):  # told to stop before it was told to start
            return 0
        logs.configure(start.config.log_level, start.config.log_format)
        self._pulse.start()
        try:
            runner = ModelRunner(start.config, lambda text: self._send(m.Progress(text)))
        except ModelRefused as error:
            self._send(m.Refused(str(error)))
            return 2
        core = EngineCore(runner, self._wake)
        gc.collect()
        gc.freeze()  # the model stays: collections in the midst of steps needn't look at its 400,000 objects again
        self._pulse.tokens, self._pulse.ended = lambda: core.step_tokens, core.ended
        self._pulse.begin()
        self._send(m.Ready(core.info))
        while not self._stopping and os.getppid() == self._parent_pid:
            self._turn(core)
        core.stop()
        return 0

    def close(self) -> None:
        self._pulse.stop()  # before the context takes its socket away
        self._context.destroy(linger=1000)

    def _turn(self, core: EngineCore) -> None:
        ready = dict(self._poller.poll(_patience_ms(core) if core.is_idle else 0))
        self._pulse.begin()
        if self._wake_in in ready:
            self._wake_in.recv()
        core.clock.begin()
        while not self._stopping and self._socket.poll(0):
            self._handle(core, self._decoder.decode(self._socket.recv()))
        core.clock.lap("messages")
        deltas, loads = core.step(), core.take_loads()
        if deltas or loads:
            core.clock.begin()
            self._send(m.Step(deltas, loads))
            core.clock.lap("messages")
        self._pulse.end()

    def _handle(self, core: EngineCore, message: m.ToEngine) -> None:
        match message:
            case m.Submit(request):
                try:
                    core.add(request)
                except RequestRefused as error:
                    self._send(m.Rejected(request.request_id, str(error)))
            case m.Abort(request_id):
                if (last := core.abort(request_id)) is not None:  # at once: somebody may wait for what it says
                    self._send(m.Step([last], []))
            case m.Load(adapter, asker):
                core.load_adapter(adapter, asker)
            case m.Unload(digest):
                core.unload_adapter(digest)
            case m.Keep(digests):
                core.keep_adapters(digests)
            case m.Ping():
                self._send(m.Pong())
            case m.Count(call):
                self._send(m.Counted(call, msgspec.structs.replace(core.stats(), pid=os.getpid())))
            case m.Stop():
                self._stopping = True
            case m.Start():
                log.error("a second Start reached a running engine; ignored")

    def _send(self, message: m.FromEngine) -> None:
        self._socket.send(self._encoder.encode(message))

    def _wake(self) -> None:
        """Called on threads beside the step loop."""
        with self._waking:
            if self._wake_out is None:
                self._wake_out = self._context.socket(zmq.PUSH)
                self._wake_out.connect("inproc://wake")
            self._wake_out.send(WAKE)


def _patience_ms(core: EngineCore) -> int:
    """How long an idle core may be left alone: not beyond the end of some request's time."""
    return math.ceil(min(IDLE_POLL_MS, 1000 * max(0.0, core.seconds_left)))
