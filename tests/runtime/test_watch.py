"""Stalls are told while they last, once; the heartbeat shows life, and its failure ends nothing."""

import json
import threading
import time

import pytest

from cyclip_jax.runtime import watch
from cyclip_jax.runtime.clock import Clock
from cyclip_jax.runtime.watch import Watch, read_heartbeat
from tests.runtime.test_clock import Time, trained

FACTOR = 10.0


class Lines:
    """A Console that keeps what it is told, and can be waited for."""

    def __init__(self):
        self.said, self.logged = [], []
        self._has_said = threading.Semaphore(0)

    def say(self, text):
        self.said.append(text)
        self._has_said.release()

    def log(self, text):
        self.logged.append(text)

    def wait(self):
        assert self._has_said.acquire(timeout=60)


@pytest.fixture
def now():
    return Time()


class Idle:
    """A thread that does nothing."""

    def __init__(self, **_):
        self.start = lambda: None


def without_threads(clock, workdir, console):
    """A Watch that looks only where a test tells it to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch.threading, "Thread", Idle)
        return Watch(clock, workdir, stall_factor=FACTOR, console=console)


@pytest.fixture
def watched(now, tmp_path):
    """(clock in training after ten steps of 2 s, Watch without threads, console)."""
    clock, console = Clock(now=now), Lines()
    clock.begin_training(0)
    trained(clock, now, 0, 10, seconds=2)
    return clock, without_threads(clock, tmp_path, console), console


def look_through(watching, now, seconds):
    """Looks once a second for so long."""
    for _ in range(seconds):
        now.pass_by(1)
        watching.look()


def test_a_step_of_ten_times_the_median_is_told_once_and_when_it_is_over(watched, now):
    clock, watching, console = watched
    look_through(watching, now, 20)
    assert console.said == []
    look_through(watching, now, 30)
    assert console.said == [
        "stalled after step 10: for 21 s, where 2 s are usual, the host waits for the device, "
        "which computes a step"
    ]
    clock.step_done(11)
    look_through(watching, now, 3)
    assert console.said[1:] == ["the stall after step 10 is over; it took 50 s"]
    clock.step_done(12)
    look_through(watching, now, 30)
    assert "stalled after step 12" in console.said[2]


def test_waiting_for_data_is_told_from_waiting_for_the_device(watched, now):
    clock, watching, console = watched
    now.pass_by(15)
    with clock.waiting_for("data"):
        look_through(watching, now, 6)
    assert len(console.said) == 1 and console.said[0].endswith("the host waits for data")


def test_evaluations_and_saves_have_medians_of_their_own(watched, now):
    clock, watching, console = watched
    for phase, seconds in {"evaluation": 300, "checkpoint": 40}.items():
        for _ in range(3):
            with clock.phase(phase):
                look_through(watching, now, seconds)
        with clock.phase(phase):
            look_through(watching, now, 10 * seconds)
    assert console.said == []
    with clock.phase("checkpoint"):
        look_through(watching, now, 401)
    assert console.said == [
        "stalled after step 10: for 401 s, where 40 s are usual, the host waits for a checkpoint"
    ]


@pytest.mark.parametrize("phase", ["startup", "compile", "evaluation", "checkpoint", "profile"])
def test_what_never_happened_before_is_a_stall_after_ten_minutes(watched, now, phase):
    clock, watching, console = watched
    with clock.phase(phase):
        look_through(watching, now, 600)
        assert console.said == []
        look_through(watching, now, 2)
    assert len(console.said) == 1 and "usual" not in console.said[0]


def test_the_first_steps_are_stalled_after_ten_minutes(now, tmp_path):
    fresh, console = Clock(now=now), Lines()
    fresh.begin_training(0)
    watching = without_threads(fresh, tmp_path, console)
    look_through(watching, now, 600)
    assert console.said == []
    look_through(watching, now, 1)
    assert "stalled after step 0" in console.said[0]


def test_steps_of_milliseconds_may_take_seconds(watched, now):
    clock, watching, console = watched
    trained(clock, now, 10, 200, seconds=0.001)
    look_through(watching, now, 10)
    assert console.said == []


def test_a_date_that_jumps_makes_no_stall(monkeypatch):
    console = Lines()
    real = without_threads(clock := Clock(), "/nowhere", console)
    clock.begin_training(0)
    for date in (0.0, 1e10, -1e10):
        monkeypatch.setattr(time, "time", lambda date=date: date)
        for _ in range(3):
            real.look()
    assert console.said == []


def test_a_stall_is_told_while_the_thread_that_trains_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watch, "LEAST_SECONDS", 0.1)
    clock, console = Clock(), Lines()
    clock.begin_training(0)
    for step in range(1, 6):
        clock.step_done(step)
    watching = Watch(clock, tmp_path, stall_factor=2.0, console=console)
    with clock.waiting_for("data"):
        console.wait()  # held until the other thread has spoken
    clock.step_done(6)
    console.wait()
    watching.close()
    assert "the host waits for data" in console.said[0] and "is over" in console.said[1]
    assert "console.wait()" in console.logged[0] and "MainThread" in console.logged[0]


def test_other_processes_log_their_own_stalls_and_write_no_heartbeat(now, tmp_path, caplog):
    clock = Clock(now=now)
    clock.begin_training(0)
    trained(clock, now, 0, 10, seconds=2)
    watching = Watch(clock, tmp_path, stall_factor=FACTOR, console=None)
    watching.close()
    now.pass_by(30)
    watching.look()
    assert "stalled after step 10" in caplog.text
    assert not list(tmp_path.iterdir())


def test_the_heartbeat_shows_step_phase_and_date(tmp_path, monkeypatch):
    clock = Clock()
    clock.begin_training(7)
    watching = Watch(clock, tmp_path, stall_factor=0, console=Lines())
    with clock.phase("checkpoint"):
        watching.beat()
        beat = json.loads((tmp_path / "heartbeat.json").read_text())
    watching.close()
    assert (beat["step"], beat["phase"]) == (7, "checkpoint")
    assert abs(beat["time"] - time.time()) < 60
    assert read_heartbeat(tmp_path)["phase"] == "training"  # closing writes the last


def test_a_heartbeat_that_cannot_be_written_is_told_once_and_harms_nothing(tmp_path):
    (tmp_path / "file").touch()
    console = Lines()
    watching = Watch(Clock(), tmp_path / "file", stall_factor=0, console=console)
    watching.beat()
    watching.close()
    assert len(console.said) == 1 and "the run goes on" in console.said[0]


def test_a_missing_or_damaged_heartbeat_is_none(tmp_path):
    assert read_heartbeat(tmp_path) is None
    (tmp_path / "heartbeat.json").write_text('{"step": 3, "ph')
    assert read_heartbeat(tmp_path) is None
