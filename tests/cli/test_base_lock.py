"""A data folder belongs to one base model for as long as a server of it runs."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from livery.data_folder import DataFolder, DataFolderUnusable, KnownBase
from livery_adapters.base_model import BaseShapes

ONE = KnownBase("one", "1" * 64, "hub/one", BaseShapes({}))
TWO = KnownBase("two", "2" * 64, "hub/two", BaseShapes({}))


def test_a_server_of_another_base_is_refused_while_one_runs(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    with ExitStack() as servers:
        servers.enter_context(folder.serving(ONE))
        again = KnownBase("one-by-another-name", ONE.digest, "hub/one", ONE.shapes)
        with folder.serving(again):  # the same base
            pass
        with pytest.raises(DataFolderUnusable) as refused, folder.serving(TWO):
            pass
        for words in (str(tmp_path), "111111111111", "two (222222222222)", "stop that server", "--data DIR"):
            assert words in str(refused.value)
        assert folder.base() == again, "nothing was overwritten"
    with folder.serving(TWO):
        assert folder.base() == TWO
        with pytest.raises(DataFolderUnusable, match=r"two \(222222222222\)"), folder.serving(ONE):
            pass


def test_the_last_of_several_servers_frees_the_folder(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(folder.serving(ONE))
        second.enter_context(folder.serving(ONE))
        first.close()
        with pytest.raises(DataFolderUnusable), folder.serving(TWO):
            pass
        second.close()
        with folder.serving(TWO):
            pass
