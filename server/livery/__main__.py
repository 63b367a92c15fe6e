"""`python -m livery`: the same as the `livery` command."""

from livery.cli import main

if __name__ == "__main__":
    main()
