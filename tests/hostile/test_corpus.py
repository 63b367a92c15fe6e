"""Every bad adapter of the corpus is refused in its own words, leaves nothing behind and costs nobody else anything."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import os
import resource
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from hostile import work_cases
from hostile.base import good
from hostile.case import Case, write
from hostile.corpus import CASES
from hostile.name_cases import CASES as NAME_CASES
from hostile.name_cases import NameCase, attempt
from hostile.taking import GOOD, Outcome, Shop, refusal, take_all
from livery_adapters.finite import check_finite
from livery_adapters.manifest import read_manifest
from livery_adapters.refusal import AdapterRefused
from livery_adapters.tensor_file import WEIGHTS_NAME

TESTS = Path(__file__).parents[1]
EASY = tuple(case for case in CASES if case.group != "work")
# Generous for a machine that others use too, and far below what the defects that these cases look for would take.
CPU_SECONDS = 60


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """What became of every case, all in one shop."""
    return {outcome.case.title: outcome for outcome in take_all(EASY, tmp_path_factory.mktemp("shop"))}


def test_there_are_enough_cases_and_no_two_have_one_title() -> None:
    bad = [case for case in CASES if case.code]
    assert len(bad) >= 80
    assert len({case.title for case in CASES}) == len(CASES)


def title(case: Case | NameCase) -> str:
    """The name of a case in a test's."""
    return ascii(case.title)


@pytest.mark.parametrize("case", EASY, ids=title)
def test_a_bad_adapter_is_refused_and_nothing_of_it_is_kept(case: Case, outcomes: dict[str, Outcome]) -> None:
    outcome = outcomes[case.title]
    if outcome.skipped:
        pytest.skip(outcome.skipped)
    assert outcome.code == case.code, outcome.message
    assert case.says in outcome.message
    assert outcome.left_behind == ()


def test_every_mistake_has_words_of_its_own(outcomes: dict[str, Outcome]) -> None:
    by_words: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for outcome in outcomes.values():
        if outcome.code:
            by_words[outcome.code, outcome.message].append(outcome.case)
    shared = [cases for cases in by_words.values() if len(cases) > 1]
    assert [
        [case.title for case in cases]
        for cases in shared
        if len({case.mistake for case in cases}) > 1 or not cases[0].mistake
    ] == []


def test_messages_are_short_printable_and_name_no_path_of_the_server(outcomes: dict[str, Outcome]) -> None:
    for outcome in outcomes.values():
        assert outcome.message.isprintable(), outcome.case.title
        assert len(outcome.message) < 1200, outcome.case.title
        assert "/incoming/" not in outcome.message, outcome.case.title


def test_no_descriptor_and_no_memory_is_kept(tmp_path: Path, outcomes: dict[str, Outcome]) -> None:
    """`outcomes` went before, so what is made once is made; what is kept would be kept each time."""
    descriptors, grown = len(os.listdir("/proc/self/fd")), []
    for turn in range(3):
        before = resident()
        take_all(tuple(case for case in EASY if case.group in ("cut", "file", "header")), tmp_path / str(turn))
        gc.collect()
        grown.append(resident() - before)
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert min(grown) < 32 << 20


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# -- names -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return asyncio.run(Shop.opened(tmp_path_factory.mktemp("names")))


@pytest.mark.parametrize("case", NAME_CASES, ids=title)
def test_a_bad_name_is_refused_wherever_it_is_used(case: NameCase, shop: Shop) -> None:
    async def use() -> tuple[str, str]:
        async def tried() -> None:
            found = attempt(shop, case)
            if inspect.isawaitable(found):
                await found

        return await refusal(tried())

    code, message = asyncio.run(use())
    assert code == case.code, message
    assert case.says in message
    assert [record.name for record in shop.library.registry.page().records] == [GOOD]
    assert shop.library.registry.aliases() == ()


def test_only_a_digest_becomes_a_path(shop: Shop) -> None:
    for text in ("../../etc", "A" * 64, "0" * 63, "0" * 64 + "\n", ""):
        with pytest.raises(ValueError, match="is not a SHA-256 digest"):
            shop.library.store.path(text)


# -- files that change while they are read ---------------------------------------------------------------


def test_weights_that_shrink_between_two_looks_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "adapter", *good())
    manifest = read_manifest(tmp_path / "adapter")
    os.truncate(tmp_path / "adapter" / WEIGHTS_NAME, len(good()[1]) - 1)
    with pytest.raises(AdapterRefused, match="shrank while it was read") as caught:
        check_finite(tmp_path / "adapter", manifest)
    assert caught.value.code == "incomplete"


# -- files that ask for more work than they are worth ----------------------------------------------------


def taken_apart(cpu_seconds: int, *arguments: str) -> list[dict[str, object]]:
    """Cases run in a process that is killed when it has used up its processor time."""
    command = [sys.executable, "-m", "hostile.run_corpus", "--cpu-seconds", str(cpu_seconds), "--json", *arguments]
    environ = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert done.returncode >= 0, f"killed by signal {-done.returncode}: {arguments}"
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def test_small_files_ask_for_little_work() -> None:
    lines = taken_apart(CPU_SECONDS, "--only", "work: ")
    assert len(lines) == len(work_cases.CASES)
    assert [line for line in lines if not line["as_expected"]] == []
