"""The command `livery`, which is `python -m livery` too."""

from livery.beginning import importing

with importing():
    from livery.cli import main

if __name__ == "__main__":
    main()
