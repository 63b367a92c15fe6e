"""Whether a process wanted for cores, on this one's threads and on times that are made up."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from livery.engine.starvation import BRIEF_S, THREADS, Silence, Starvation

SECOND = 1_000_000_000


def stand(folder: Path, **threads: tuple[float, float]) -> None:
    """The seconds that each thread of a process has run by now, and waited for a core."""
    for name, (ran, waited) in threads.items():
        (folder / name[1:]).mkdir(parents=True, exist_ok=True)
        (folder / name[1:] / "schedstat").write_text(f"{int(ran * SECOND)} {int(waited * SECOND)} 7\n")


def test_who_is_ready_and_does_not_run_is_starved(tmp_path: Path) -> None:
    silence = Silence(tmp_path)
    stand(tmp_path, t1=(50, 9), t2=(3, 40))
    silence.goes_on(BRIEF_S)  # from here on it is looked at
    stand(tmp_path, t1=(50.25, 10), t2=(3, 43))
    silence.goes_on(3.0)
    assert silence.lasts_s == BRIEF_S + 3
    assert silence.starved_s == 2.75
    silence.ends()
    assert silence.lasts_s == silence.starved_s == 0
    silence.goes_on(BRIEF_S)
    assert silence.starved_s == 0, "what was before it spoke counts no more"


@pytest.mark.parametrize(
    ("loop", "pulse"),
    [
        ((0, 0), (0, 0)),  # stopped, or waiting for what never comes
        ((4, 0), (0, 4)),  # spinning on the one core that there is, for which the other is woken all the time
    ],
)
def test_what_hangs_is_not_starved(tmp_path: Path, loop: tuple[int, int], pulse: tuple[int, int]) -> None:
    silence = Silence(tmp_path)
    stand(tmp_path, t1=(1, 1), t2=(1, 1))
    silence.goes_on(BRIEF_S)
    stand(tmp_path, t1=(1 + loop[0], 1 + loop[1]), t2=(1 + pulse[0], 1 + pulse[1]))
    silence.goes_on(4.0)
    assert silence.starved_s == 0


def ready(folder: Path, state: str) -> None:
    """All threads of a process are in this state."""
    for thread in folder.iterdir():
        (thread / "stat").write_text(f"{thread.name} (a) name) {state} 1 1 1 0 -1")


def test_a_wait_counts_before_it_is_over(tmp_path: Path) -> None:
    """The kernel adds it to a thread's times when that has its core at last, which may be too late for the process."""
    clock = [100.0]
    silence = Silence(tmp_path, lambda: clock[0])
    stand(tmp_path, t1=(1, 1), t2=(1, 1))
    ready(tmp_path, "R")
    silence.goes_on(BRIEF_S)
    clock[0] += 4
    silence.goes_on(4.0)
    assert silence.starved_s == 4
    stand(tmp_path, t1=(1.25, 5.5))  # it has run, and waits anew
    clock[0] += 0.5
    silence.goes_on(0.5)
    assert silence.starved_s == 4.25, "no second of it is counted twice"


@pytest.mark.parametrize("state", ["S", "T", "D"])
def test_who_does_not_want_a_core_does_not_wait_for_one(tmp_path: Path, state: str) -> None:
    clock = [100.0]
    silence = Silence(tmp_path, lambda: clock[0])
    stand(tmp_path, t1=(1, 1), t2=(1, 1))
    ready(tmp_path, state)
    silence.goes_on(BRIEF_S)
    clock[0] += 4
    silence.goes_on(4.0)
    assert silence.starved_s == 0
    ready(tmp_path, "R")  # woken just now: how long it has waited is known from here on
    silence.goes_on(0.25)
    assert silence.starved_s == 0


def test_a_step_waits_for_a_core_before_it_has_one(tmp_path: Path) -> None:
    clock = [100.0]
    starvation = Starvation(tmp_path, lambda: clock[0])
    stand(tmp_path, t1=(50, 9), t2=(3, 1))
    ready(tmp_path, "R")
    assert starvation.during(100.0) == 0.0
    for waited in (1.0, 2.0):
        clock[0] += 1
        assert starvation.during(100.0) == waited
    stand(tmp_path, t1=(50.5, 11))
    ready(tmp_path, "S")
    clock[0] += 0.5
    assert starvation.during(100.0) == 2.0, "what was waited is the same once the kernel counts it"


def test_threads_that_come_and_go_and_a_process_that_ends_are_no_matter(tmp_path: Path) -> None:
    silence = Silence(tmp_path)
    stand(tmp_path, t1=(1, 1), t2=(1, 1))
    silence.goes_on(BRIEF_S)
    shutil.rmtree(tmp_path / "1")
    stand(tmp_path, t2=(1, 3), t3=(9, 90))
    (tmp_path / "4").mkdir()
    silence.goes_on(2.0)
    assert silence.starved_s == 2
    shutil.rmtree(tmp_path)
    silence.goes_on(2.0)
    assert silence.starved_s == 0


def test_what_a_step_waited_counts_from_its_beginning_however_late_it_is_first_asked_for(tmp_path: Path) -> None:
    """Who asks wants for cores too: it is asked for the first time when the step has waited for seconds."""
    starvation = Starvation(tmp_path)
    stand(tmp_path, t1=(50, 9), t2=(3, 1))
    assert starvation.during(100.0) == 0.0, "what was before the first beat isn't known"
    stand(tmp_path, t1=(50.25, 12), t2=(3, 2))
    assert starvation.during(100.25) == 3.0
    stand(tmp_path, t1=(50.25, 12.5), t2=(3, 4))
    assert starvation.during(100.25) == 5.0
    stand(tmp_path, t1=(51, 13), t2=(3, 4))
    assert starvation.during(108.0) == 0.5, "the step before is over"


@pytest.mark.skipif(not THREADS.is_dir(), reason="only Linux says how long a thread was ready and didn't run")
def test_processes_tell_their_times() -> None:
    silence = Silence(Path(f"/proc/{os.getpid()}/task"))
    silence.goes_on(BRIEF_S)
    assert silence._begun


@pytest.mark.skipif(not THREADS.is_dir(), reason="only Linux says how long a thread was ready and didn't run")
def test_who_waits_for_the_interpreter_is_no_part_of_a_step() -> None:
    """On one core the pulse's own thread waits most of the time for a step that spins: that is no want of a core."""
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    starvation = Starvation()
    try:
        assert starvation.during(1.0) == 0.0
        assert str(threading.get_native_id()) in starvation._before
        assert str(other.native_id) not in starvation._before
    finally:
        done.set()
        other.join()
