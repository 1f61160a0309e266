"""What the loop needs of the operating system: signals, a stopwatch, and the next batch in time."""

import collections
import concurrent.futures
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

    def lap(self, step):
        """(steps, seconds) since the last call, or since the start."""
        now = time.perf_counter()
        lap = max(step - self._step, 1), now - self._start - self._paused
        self._step, self._start, self._paused = step, now, 0.0
        return lap


class Feed:
    """Brings batches to the device while it computes, and measures how long it waits for them.

    Args:
      batches: iterator of (host arrays, position).
      put: function from host arrays to device arrays.
    """

    def __init__(self, batches, put):
        self._batches, self._put = batches, put
        self._watcher = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._finished = collections.deque()
        self._waited = 0.0

    def next(self, while_computing=None):
        """(device arrays, position) of the next batch.

        At most one more step is then waiting behind the running one: a host that ran further ahead
        would fill the device with batches.

        Args:
          while_computing: the outputs of the step that was dispatched last.
        """
        if while_computing is not None:
            self._finished.append(self._watcher.submit(_time_when_ready, while_computing))
        batch, position = next(self._batches)
        batch = jax.block_until_ready(self._put(batch))
        if while_computing is not None:
            if self._finished[-1].done():
                self._waited += max(time.perf_counter() - self._finished[-1].result(), 0.0)
            if len(self._finished) > 1:
                self._finished.popleft().result()
        return batch, position

    def take_waited(self):
        """Seconds since the last call in which the device had no step to compute."""
        waited, self._waited = self._waited, 0.0
        return waited

    def close(self):
        """Ends the thread."""
        self._watcher.shutdown()


def _time_when_ready(arrays):
    jax.block_until_ready(arrays)
    return time.perf_counter()
