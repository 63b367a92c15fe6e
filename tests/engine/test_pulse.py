"""What is taken for a hang, on times that are made up."""

from __future__ import annotations

import pytest

from livery.engine.loader import Worker
from livery.engine.pulse import (
    FIRST_S,
    FIRST_STEPS,
    GENEROUS,
    LONG_S,
    QUIET_S,
    SPARING,
    Beat,
    Judgement,
    StepTimes,
    judge,
)

HANG = 4.0


def beat(age_s: float, tokens: int = 1, allowed_s: float = 1.0, ended: str = "") -> Beat:
    return Beat(tokens, age_s, allowed_s, ended)


@pytest.mark.parametrize("silent_s", [0.0, 0.3, QUIET_S - 0.01])
def test_an_engine_that_beats_is_ready(silent_s: float) -> None:
    judged = judge(silent_s, beat(0.05), HANG)
    assert judged.ready
    assert not judged.hang


@pytest.mark.parametrize("silent_s", [QUIET_S, 3.0, HANG - 0.01])
def test_silence_takes_readiness_first(silent_s: float) -> None:
    judged = judge(silent_s, beat(0.05), HANG)
    assert not judged.ready
    assert not judged.hang


def test_silence_for_long_is_a_hang_even_before_the_first_beat() -> None:
    assert "4.0 s" in judge(4.0, None, HANG).hang
    assert judge(1.0, None, HANG).ready
    assert not judge(50.0, None, 60.0).hang  # an operator said so


def test_silence_for_want_of_a_core_is_no_hang_until_it_had_one_for_long_enough() -> None:
    starving = judge(60.0, beat(0.05), HANG, starved_s=59.0)
    assert not starving.hang
    assert not starving.ready
    assert not judge(6.0, None, HANG, starved_s=4.1).hang
    assert judge(6.0, None, HANG, starved_s=3.9).hang


def test_a_step_may_take_a_multiple_of_what_such_steps_took() -> None:
    assert judge(0.1, beat(3.4, 256, allowed_s=14.0), HANG).ready
    unusual = judge(0.1, beat(13.0, 256, allowed_s=14.0), HANG)
    assert not unusual.ready
    assert not unusual.hang
    assert "256 tokens" in judge(0.1, beat(14.5, 256, allowed_s=14.0), HANG).hang


def test_quick_steps_may_take_as_long_as_silence_may() -> None:
    assert judge(0.1, beat(1.2, allowed_s=0.01), HANG).ready
    assert not judge(0.1, beat(3.9, allowed_s=0.01), HANG).hang
    assert judge(0.1, beat(4.1, allowed_s=0.01), HANG).hang
    assert not judge(0.1, beat(4.1, allowed_s=0.01), 30.0).hang


def test_what_waits_for_cores_is_slow_and_no_hang_until_it_had_them_for_long_enough() -> None:
    assert judge(0.1, Beat(1, 60.0, 0.01, waited_s=59.0), HANG) == Judgement(ready=False)
    assert not judge(0.1, Beat(1, 6.0, 0.01, waited_s=4.1), HANG).hang
    assert judge(0.1, Beat(1, 6.0, 0.01, waited_s=3.9), HANG).hang
    assert judge(0.1, Beat(1, 4.1, 0.01, waited_s=1.5), HANG).hang  # on a busy core it takes no longer
    assert not judge(0.1, Beat(1, 6.0, 5.0, waited_s=1.5), HANG).hang  # such steps take long


def test_a_loop_that_stays_between_steps_hangs_too() -> None:
    assert "between steps" in judge(0.1, beat(5.0, tokens=0, allowed_s=0.2), HANG).hang


def test_a_thread_that_is_gone_is_named() -> None:
    assert "adapter-loader" in judge(0.0, beat(0.0, ended="adapter-loader"), HANG).hang


def test_the_very_first_steps_get_minutes() -> None:
    times = StepTimes()
    for _ in range(FIRST_STEPS):
        assert times.allowed(1) == times.allowed(256) == FIRST_S
        times.learn(1, 0.05)
    assert times.allowed(1) == pytest.approx(GENEROUS * 0.05)
    assert times.allowed(0) == FIRST_S  # a round without a step tells nothing of steps, nor they of it


def test_first_steps_of_a_size_get_long_enough_for_what_others_let_expect() -> None:
    times = StepTimes()
    for _ in range(FIRST_STEPS):
        times.learn(1, 0.05)
    assert times.allowed(100) == LONG_S
    assert times.allowed(800) == pytest.approx(SPARING * 512 * 0.05)
    assert times.allowed(100_000) == FIRST_S
    times.learn(256, 20.0)
    assert times.allowed(256) == SPARING * 20.0
    for _ in range(FIRST_STEPS):
        times.learn(256, 0.8)
    for _ in range(1000):
        times.learn(256, 0.8)
    assert times.allowed(300) == pytest.approx(GENEROUS * 0.8)  # of the same size, by powers of two
    assert times.allowed(1) == pytest.approx(GENEROUS * 0.05)
    assert times.allowed(64) == LONG_S  # those of more tokens took less
    assert times.allowed(1024) == LONG_S


def test_one_slow_step_is_forgotten_in_time() -> None:
    times = StepTimes()
    for seconds in (0.05, 0.05, 1.0, 0.05):
        times.learn(4, seconds)
    assert times.allowed(4) > GENEROUS * 0.9
    for _ in range(1000):
        times.learn(4, 0.05)
    assert times.allowed(4) == pytest.approx(GENEROUS * 0.05)


def test_one_very_slow_step_hides_no_hang_for_minutes() -> None:
    times = StepTimes()
    for seconds in (0.05, 0.05, 5.0):
        times.learn(4, seconds)
    assert times.allowed(4) == LONG_S
    times.learn(4, 20.0)
    assert times.allowed(4) == SPARING * 20.0


def test_a_machine_that_slows_down_gradually_is_never_taken_for_a_hang() -> None:
    times, seconds = StepTimes(), 0.01
    for _ in range(FIRST_STEPS):
        times.learn(1, seconds)
    while seconds < 60:
        seconds *= 2
        assert not judge(0.2, beat(seconds, allowed_s=times.allowed(1)), HANG).hang
        times.learn(1, seconds)


def test_a_worker_whose_thread_ended_says_so() -> None:
    def work(job: int) -> int:
        raise SystemExit(job)

    worker = Worker("adapter-loader", work, lambda: None)
    assert worker.alive
    worker.submit(1)
    worker.stop()
    assert not worker.alive
