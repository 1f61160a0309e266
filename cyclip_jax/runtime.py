"""What the loop needs of the operating system: signals and a stopwatch."""

import contextlib
import signal
import time

import jax


class StopOnSignal:
    """Turns the first SIGTERM or Ctrl-C into a request to save and stop; a second one kills.

    With several processes JAX's own preemption service listens instead, so that all stop at the
    same step (see Checkpointer.reached_preemption).

    Attributes:
      requested: whether a signal has come.
    """

    def __init__(self):
        self.requested = False
        self._previous = {}

    def __enter__(self):
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number, _):
        self.requested = True
        signal.signal(number, signal.SIG_DFL)


class Stopwatch:
    """Measures seconds per step since the last question, without what is paused."""

    def __init__(self, step):
        self._step, self._start, self._paused = step, time.perf_counter(), 0.0

    @contextlib.contextmanager
    def paused(self, state):
        """A context whose time does not count; what is still computing `state` does."""
        jax.block_until_ready(state)
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def seconds_per_step(self, step):
        """Average since the last call, or since the start."""
        now = time.perf_counter()
        seconds = (now - self._start - self._paused) / max(step - self._step, 1)
        self._step, self._start, self._paused = step, now, 0.0
        return seconds
