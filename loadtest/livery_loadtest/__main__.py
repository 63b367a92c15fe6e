"""`python -m livery_loadtest`: the same commands as `livery bench`."""

from livery_loadtest.cli import app

if __name__ == "__main__":
    app()
