"""Workers that do as they shouldn't, run in place of a server's: `python -m stubborn DESCRIPTOR`, STUBBORN says how.

mute: it never says anything. serving: it serves, as it says, and gets on, and does nothing that it is told. told: it
serves once it was told its number, and gets on.
falls-silent: it serves, and then says nothing more.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

import msgspec

from livery.workers import messages
from livery.workers.link import HEAD


def main() -> None:
    link, way = socket.socket(fileno=int(sys.argv[1])), os.environ["STUBBORN"]

    def say(message: msgspec.Struct) -> None:
        frame = msgspec.msgpack.encode(message)
        link.sendall(HEAD.pack(len(frame)) + frame)

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if way == "told":
        link.recv(1)
    if way != "mute":
        say(messages.Serving())
    while way in ("serving", "told"):
        say(messages.Alive())
        time.sleep(messages.BEAT_S / 2)
    signal.pause()


if __name__ == "__main__":
    main()
