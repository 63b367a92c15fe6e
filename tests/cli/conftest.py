"""The command line called in this process, as `main` calls it: quicker than a process for each command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from livery.cli import main


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self, code: int = 0) -> Any:
        assert self.code == code, self.err
        return json.loads(self.out)


Livery = Callable[..., Done]


@pytest.fixture
def livery(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Livery:
    for name in ("URL", "API_KEY", "REGISTRY", "ADMIN_URL", "ADMIN_KEY", "DATA"):
        monkeypatch.delenv(f"LIVERY_{name}", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["livery", *map(str, arguments)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        out, err = capfd.readouterr()
        assert "Traceback" not in err, err
        return Done(code, out, err)

    return call
