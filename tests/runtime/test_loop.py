import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cyclip_jax.runtime.clock import Clock
from cyclip_jax.runtime.loop import Feed


class Computing:
    """Stands for a step's output: ready once it is told to be."""

    def __init__(self):
        self._ready = threading.Event()

    def block_until_ready(self):
        self._ready.wait(10)
        return self

    def finish(self):
        self._ready.set()


def feed_of(delays, put=lambda batch: batch):
    """A Feed whose batches take `delays` seconds each, and the clock that it tells."""

    def batches():
        for index, delay in enumerate(delays):
            time.sleep(delay)
            yield np.full(2, index), index

    clock = Clock()
    return Feed(batches(), put, clock), clock


def waited(clock):
    """Seconds that the device has waited for data."""
    return clock.seconds()["data"]


def test_the_first_batch_is_waited_for():
    feed, clock = feed_of([0.2])
    feed.next()
    assert waited(clock) > 0.19
    feed.close()


def test_the_clock_knows_that_the_host_waits_for_data():
    seen = []

    def batches():
        seen.append(clock.moment().waits_for)
        yield np.zeros(1), 0

    clock = Clock()
    feed = Feed(batches(), lambda batch: batch, clock)
    feed.next()
    assert (seen, clock.moment().waits_for) == (["data"], "startup")
    feed.close()


def test_batches_come_in_order_and_on_the_device():
    feed, _ = feed_of([0, 0, 0], put=jnp.asarray)
    got = [feed.next(), feed.next(jnp.zeros(1)), feed.next(jnp.zeros(1))]
    assert all(isinstance(batch, jax.Array) for batch, _ in got)
    assert [(int(batch[0]), position) for batch, position in got] == [(0, 0), (1, 1), (2, 2)]
    feed.close()


def test_a_batch_that_is_there_before_the_step_ends_costs_no_wait():
    feed, clock = feed_of([0, 0.05])
    feed.next()
    first = waited(clock)
    step = Computing()
    feed.next(while_computing=step)
    assert waited(clock) == first
    step.finish()
    feed.close()


def test_a_late_batch_costs_the_time_since_the_step_ended():
    feed, clock = feed_of([0, 0.4])
    feed.next()
    first = waited(clock)
    step = Computing()
    threading.Timer(0.1, step.finish).start()
    feed.next(while_computing=step)
    assert 0.1 < waited(clock) - first < 0.39
    feed.close()


def test_the_host_runs_one_step_ahead_and_no_further():
    feed, _ = feed_of([0] * 3)
    feed.next()
    steps = [Computing(), Computing()]
    feed.next(while_computing=steps[0])  # returns, though the step is not done
    timer = threading.Timer(0.2, steps[0].finish)
    start = time.perf_counter()
    timer.start()
    feed.next(while_computing=steps[1])  # waits for the first
    assert time.perf_counter() - start > 0.19
    steps[1].finish()
    feed.close()


def test_an_error_in_the_data_comes_through():
    def batches():
        yield np.zeros(1), 0
        raise RuntimeError("bad data")

    feed = Feed(batches(), lambda batch: batch, Clock())
    feed.next()
    with pytest.raises(RuntimeError, match="bad data"):
        feed.next(while_computing=jnp.zeros(1))
    feed.close()
