"""The command `livery`, which is `python -m livery` too."""

import os

from livery.beginning import heed_sigterm, importing

if os.getpid() == 1:
    heed_sigterm()  # imports take seconds
with importing():
    from livery.cli import main

if __name__ == "__main__":
    main()
