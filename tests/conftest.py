"""Fixtures shared by all parts of the suite."""

from __future__ import annotations

import gc
import logging
import os
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from adapters.hub_server import HubServer, used_hub
from foreign_parts import told
from slowest import SLOWEST


def keep_to_own_cores() -> None:
    """Each worker of a parallel run, and the servers it starts, keep to a share of the cores.

    Engines choose their threads by what is allowed to them: two that both take all cores are slower than one after
    the other. Called before torch is imported, which counts the cores once.
    """
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    share = cores[int(worker.removeprefix("gw")) :: workers]
    if share:
        os.sched_setaffinity(0, share)


keep_to_own_cores()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order in which workers shall take them; `--no-loadscope-reorder` has xdist leave it so."""
    tests = Path(__file__).parent
    turns = {tests / name: turn for turn, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: turns.get(item.path, len(turns)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tests that a missing part had skipped are said in words, with the remedy: quiet runs show them as a number."""
    for line in told(terminalreporter.stats.get("skipped", ())):
        terminalreporter.write_line(line, yellow=True)


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """What a server in this process sets up for its log ends with the test."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """An adapter hub of this test's own."""
    with used_hub() as server:
        yield server


# A shell that starts a run in the background has it ignore Ctrl-C, and so would each command that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Several pytest workers and an engine share few cores; spinning OpenMP threads would fight each other.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Each client of httpx would read a whole file of certificates, for 20 ms; from a folder they come as they are needed.
os.environ.pop("SSL_CERT_FILE", None)
os.environ.setdefault("SSL_CERT_DIR", ssl.get_default_verify_paths().openssl_capath)
# Read as Triton is first imported, which torch and its friends do as they like: kernels for CUDA run interpreted.
os.environ.setdefault("TRITON_INTERPRET", "1")

# In CI the same examples each time, so that a change is judged by what it changed; anywhere else new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI") == "true":
    settings.load_profile("ci")


MUCH_MEMORY = 1 << 30
STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    """Of this process; 0 where the system doesn't tell."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if STATM.exists() else 0


@pytest.fixture(scope="session")
def after_collection() -> list[int]:
    """Bytes that were in use when garbage was collected last."""
    return [0]


@pytest.fixture(autouse=True)
def models_go_with_their_tests(after_collection: list[int]) -> Iterator[None]:
    """Models lie in cycles of references, which Python collects by their number and not by their size."""
    yield
    if resident_bytes() > after_collection[0] + MUCH_MEMORY:
        gc.collect()
        after_collection[0] = resident_bytes()
