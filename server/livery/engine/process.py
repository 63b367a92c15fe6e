"""The engine's own process.

Run as `python -m livery.engine.process ADDRESS PARENT_PID` by the client, with the environment for torch's
thread pool already set.
"""

from __future__ import annotations

import sys

from livery import logs
from livery.beginning import importing

with importing():
    from livery.engine.message_loop import EngineProcess

# A step calls torch hundreds of times and asks for the interpreter after each call: with the default of 5 ms each
# could wait that long for a loader that is reading headers.
SWITCH_S = 0.0002


def main() -> None:
    logs.configure("warning", "text")  # until it is told otherwise
    sys.setswitchinterval(SWITCH_S)
    process = EngineProcess(sys.argv[1], int(sys.argv[2]))
    try:
        status = process.run()
    finally:
        process.close()
    sys.exit(status)


if __name__ == "__main__":
    main()
