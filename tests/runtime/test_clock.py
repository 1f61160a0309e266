"""One clock's seconds: by phase, of all processes, and untouched by corrections of the date."""

import itertools
import time

import pytest

from cyclip_jax.runtime.clock import PHASES, Clock


class Time:
    """A clock's `now` that a test sets."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds

    def pass_by(self, seconds):
        self.seconds += seconds


@pytest.fixture
def now():
    return Time()


def trained(clock, now, first, last, seconds):
    """Steps after `first` up to `last`, of so many seconds."""
    for step in range(first + 1, last + 1):
        now.pass_by(seconds)
        clock.step_done(step)


def test_every_second_belongs_to_one_phase(now):
    clock = Clock(began=90.0, now=now)  # ten seconds before
    now.pass_by(2)
    clock.charge_data(1)  # the first batch
    with clock.phase("compile"):
        now.pass_by(30)
    clock.begin_training(0)
    trained(clock, now, 0, 10, seconds=3)
    with clock.phase("evaluation"):
        now.pass_by(7)
    now.pass_by(4)
    clock.charge_data(1.5)
    clock.step_done(11)
    with clock.phase("checkpoint"):
        now.pass_by(0.5)
    with clock.phase("profile"):
        now.pass_by(2)
    assert clock.seconds() == {
        "startup": 11,
        "compile": 30,
        "training": 32.5,
        "data": 2.5,
        "evaluation": 7,
        "checkpoint": 0.5,
        "profile": 2,
        "end": 0,
    }
    assert sum(clock.seconds().values()) == now() - 90
    metrics = clock.metrics()
    assert metrics["goodput"] == metrics["goodput_of_all_processes"] == 32.5 / 85.5
    assert metrics["evaluation_seconds"] == 7 and metrics["startup_seconds"] == 11


def test_time_that_is_still_passing_counts(now):
    clock = Clock(now=now)
    clock.begin_training(0)
    now.pass_by(5)
    with clock.phase("evaluation"):
        now.pass_by(15)
        assert clock.metrics()["goodput"] == 0.25
    clock.end_training()
    now.pass_by(20)
    assert clock.seconds()["end"] == 20


def test_a_phase_that_fails_has_ended(now):
    clock = Clock(now=now)
    with pytest.raises(ValueError), clock.phase("evaluation"):
        now.pass_by(3)
        raise ValueError
    now.pass_by(1)
    assert clock.moment().phase == "startup" and clock.seconds()["evaluation"] == 3


def test_a_lap_is_training_and_its_waits_without_evaluations(now):
    clock = Clock(now=now)
    clock.charge_data(3)  # before the first lap
    clock.begin_training(5)
    trained(clock, now, 5, 9, seconds=2)
    with clock.phase("evaluation"):
        now.pass_by(50)
    clock.charge_data(4)
    assert clock.lap(9) == (4, 8, 4)
    trained(clock, now, 9, 10, seconds=1)
    assert clock.lap(10) == (1, 1, 0)


def test_what_is_usual_is_the_median_of_at_least_three(now):
    clock = Clock(now=now)
    clock.begin_training(0)
    for step, seconds in enumerate([9, 1, 1], start=1):
        assert clock.moment().usual_seconds is None
        now.pass_by(seconds)
        clock.step_done(step)
    with clock.phase("evaluation"):
        now.pass_by(40)
        assert clock.moment().usual_seconds is None
    assert clock.moment().usual_seconds == 1  # an evaluation is no step


def test_memory_of_durations_is_bounded(now):
    clock = Clock(now=now)
    clock.begin_training(0)
    trained(clock, now, 0, 1000, seconds=1)
    trained(clock, now, 1000, 1050, seconds=3)
    # The median of half and half: of 99 durations it would be 3, and of 101 it would be 1.
    assert clock.moment().usual_seconds == 2


def test_all_processes_of_a_run_are_summed_and_steps_done_again_are_lost(now):
    first = Clock(began=90.0, now=now)
    first.begin_training(0)
    trained(first, now, 0, 50, seconds=2)
    beat = first.heartbeat()  # and then it is killed; its last checkpoint is of step 40
    assert (beat["step"], beat["seconds_per_step"]) == (50, 2)

    second = Clock(earlier=beat, now=now)
    now.pass_by(30)
    assert second.heartbeat()["seconds"]["training"] == 100  # nothing is known to be lost yet
    second.begin_training(40)
    trained(second, now, 40, 50, seconds=2)
    metrics = second.metrics()
    assert metrics["goodput"] == 20 / 50
    assert metrics["goodput_of_all_processes"] == (80 + 20) / (110 + 50)
    assert second.heartbeat()["seconds"]["redone"] == 20


def test_a_process_killed_while_it_starts_leaves_the_account_as_it_was(now):
    first = Clock(now=now)
    first.begin_training(0)
    trained(first, now, 0, 50, seconds=2)
    second = Clock(earlier=first.heartbeat(), now=now)
    now.pass_by(10)
    third = Clock(earlier=second.heartbeat(), now=now)
    third.begin_training(40)
    seconds = third.heartbeat()["seconds"]
    assert (seconds["training"], seconds["redone"], seconds["startup"]) == (80, 20, 10)


def test_the_date_may_jump(monkeypatch):
    jumps = itertools.cycle([0.0, 1e9, -3600.0, 2e9])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    clock = Clock()
    clock.begin_training(0)
    for step in range(1, 9):
        clock.heartbeat()
        clock.step_done(step)
        clock.charge_data(0.0)
    seconds = clock.seconds()
    assert seconds.keys() == set(PHASES)
    assert all(0 <= value < 60 for value in seconds.values())
    assert clock.moment().usual_seconds < 60
