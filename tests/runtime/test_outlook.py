"""What a run says of its time and its memory, by clocks that tests set."""

import types

import pytest

from cyclip_jax.runtime.clock import Clock
from cyclip_jax.runtime.memory import peak_in_words
from cyclip_jax.runtime.outlook import Outlook


class Time:
    """A clock's `now` that a test sets."""

    seconds = 0.0

    def __call__(self):
        return self.seconds


def said(lengths, *, total_steps, every, log_every=1, evaluation_at=None):
    """{step: sentence} of a run whose steps last so long, one after the other."""
    now, found, asked = Time(), {}, []
    clock = Clock(began=0.0, now=now)
    outlook = Outlook(
        clock,
        total_steps=total_steps,
        every=every,
        memory=lambda: asked.append(0) or "2.0 GiB of memory at the peak",
    )
    clock.begin_training(0)
    for step, seconds in enumerate(lengths, start=1):
        now.seconds += seconds
        if step % log_every == 0:
            steps, lap_seconds, _ = clock.lap(step)
            if (sentence := outlook.after_lap(step, steps, lap_seconds)) is not None:
                found[step] = sentence
        clock.step_done(step)
        if step == evaluation_at:
            with clock.phase("evaluation"):
                now.seconds += 100
    assert len(asked) == len(found)  # which costs nothing before it is said
    return found


def test_it_is_said_once_after_ten_steps_and_the_first_of_them_does_not_count():
    found = said([500] + [2] * 40, total_steps=1011, every={"checkpoint": 0})
    assert found == {
        11: "about 33 min at this speed for the remaining 1,000 steps; 1 checkpoint comes on top; "
        "2.0 GiB of memory at the peak"
    }


def test_what_was_measured_is_counted_in_and_the_rest_is_named():
    every = {"evaluation": 8, "checkpoint": 20}
    found = said([1] * 20, total_steps=60, every=every, evaluation_at=8)
    assert found == {  # at 16, 24, 32, 40, 48, 56 and 60; and at 20, 40 and 60
        11: "about 12 min at this speed for the remaining 49 steps and 7 evaluations; "
        "3 checkpoints come on top; 2.0 GiB of memory at the peak"
    }


@pytest.mark.parametrize("total_steps, times", [(100, "10 evaluations"), (101, "11 evaluations")])
def test_what_is_due_at_the_step_that_is_logged_is_still_to_come(total_steps, times):
    found = said([1] * 30, total_steps=total_steps, every={"evaluation": 10}, log_every=10)
    assert list(found) == [10] and f"; {times} come on top; " in found[10]


def test_a_run_that_logs_seldom_says_it_at_its_first_line():
    found = said([1] * 300, total_steps=97_100, every={}, log_every=100)
    assert found == {
        100: "about 1 day 3 h at this speed for the remaining 97,000 steps; "
        "2.0 GiB of memory at the peak"
    }


def test_a_run_that_is_done_says_nothing():
    assert said([1] * 11, total_steps=11, every={"checkpoint": 0}) == {}


def device(**stats):
    return types.SimpleNamespace(memory_stats=lambda: stats or None)


def test_the_fullest_device_is_told_beside_the_host(monkeypatch):
    gib = 2**30
    monkeypatch.setattr("cyclip_jax.runtime.memory._host_peak", lambda: 3.1 * gib)
    assert peak_in_words([device(), device()]) == "3.1 GiB of memory at the peak"  # CPUs
    full = device(peak_bytes_in_use=int(11.2 * gib), bytes_limit=16 * gib)
    other = device(peak_bytes_in_use=gib, bytes_limit=16 * gib)
    assert peak_in_words([other, full]) == (
        "11.2 of 16.0 GiB of each device's memory at the peak, 3.1 GiB of the host's"
    )
    assert peak_in_words([device(peak_bytes_in_use=gib)]) == (
        "1.0 GiB of the device's memory at the peak, 3.1 GiB of the host's"
    )

    def broken():
        raise RuntimeError("unimplemented")

    assert peak_in_words([types.SimpleNamespace(memory_stats=broken)]).startswith("3.1 GiB of mem")


def test_the_host_tells_what_this_process_has_held():
    block = bytearray(2**26)
    block[::4096] = b"x" * len(block[::4096])
    amount = float(peak_in_words([]).split()[0])
    assert 0.1 <= amount < 1000
