"""The browser tests' runner where there is no browser: it says what to install, and fails where everything must run."""

from __future__ import annotations

import pytest

from browser import run


@pytest.mark.parametrize(("ci", "code"), [("", 0), ("true", 1)])
def test_a_missing_browser_is_said_with_the_remedy(
    ci: str, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", ci)
    assert run.main(["--chromium", "no-such-browser"]) == code
    said = capsys.readouterr().err
    assert "nothing was tested" in said and "apt-get install chromium" in said
