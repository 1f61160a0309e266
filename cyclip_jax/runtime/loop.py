"""What the loop needs of the system: signals, compiled code of before, the next batch in time."""

import collections
import concurrent.futures
import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import Array

from cyclip_jax.errors import UserError
from cyclip_jax.runtime.clock import Clock
from cyclip_jax.runtime.interrupts import heard_at_once


def keep_compiled(directory: str | None) -> None:
    """Keeps what JAX compiles in a directory, local or remote, for reuse; None keeps nothing."""
    if directory is not None:
        jax.config.update("jax_compilation_cache_dir", directory)
        compilation_cache.reset_cache()  # it may be open in another directory


# Numbered through all runs of the process, as JAX's preemption service lives as long.
_questions = itertools.count(1)


class StopOnSignal:
    """Turns the first SIGTERM or Ctrl-C into a request to save and stop; a second one kills.

    Until `begin`, Ctrl-C is left to the command, which it ends: there is nothing to save yet. With
    several processes JAX's preemption service hears SIGTERM instead, and tells all of them.

    Args:
      clock: tells what the run is doing when it is told to stop.
      say: shows a person what comes of that. It is called in the moment of the signal, by a thread;
        of several processes once they all know of it.
    """

    def __init__(self, clock: Clock, say: Callable[[str], object]) -> None:
        self._clock, self._say = clock, say
        self._first_step: int | None = None
        self._line: str | None = None
        self._signalled, self._is_told, self._turn = False, False, threading.Lock()
        self._previous: dict[int, Any] = {}
        self._heard: set[int] = set()
        self._listening = contextlib.ExitStack()

    def __enter__(self) -> "StopOnSignal":
        if jax.process_count() == 1:
            self._listening.enter_context(heard_at_once(self._hear))
            self._take(signal.SIGTERM)
        return self

    def begin(self, first_step: int) -> None:
        """From now on there may be something to save that `first_step` did not have."""
        self._first_step = first_step
        if jax.process_count() == 1:
            self._take(signal.SIGINT)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._listening.close()

    def requested(self) -> bool:
        """Whether a signal has come to any process.

        Several processes must ask equally often, between steps and within evaluations, so that all
        of them get the answer yes to the same question.
        """
        is_requested = self._signalled
        if jax.process_count() > 1:
            is_requested = multihost_utils.reached_preemption_sync_point(next(_questions))
        if is_requested:
            self._tell_once()
        return is_requested

    def _take(self, number):
        self._previous[number] = signal.signal(number, self._request)

    def _request(self, number, _):
        self._line = self._line or _stopping(*self._clock.phase_and_step(), self._first_step)
        self._signalled = True
        signal.signal(number, signal.SIG_DFL)

    def _hear(self, number):
        """What the listening thread calls; the main thread may be in the middle of a step."""
        if number not in self._previous:
            return False
        if number in self._heard:
            os._exit(128 + number)  # as shells tell of what a signal has ended
        self._heard.add(number)
        self._tell_once()
        return True

    def _tell_once(self):
        with self._turn:
            if not self._is_told:
                line = _stopping(*self._clock.phase_and_step(), self._first_step)
                # In this order: the main thread may have taken note and be a step further by now.
                self._say(self._line or line)
            self._is_told = True


def _stopping(phase, step, first_step):
    """What comes of a signal in a phase and with so many steps done, in a sentence."""
    if phase == "end":
        return "stopping: everything is saved; the report is being written"
    # A step that has begun is done first; what is evaluated or saved is a step that is done.
    step += phase in ("training", "profile")
    if first_step is None or step == first_step:
        return "stopping: there is nothing new to save"
    return f"stopping: saving step {step}; once more ends the run at once, unsaved"


class Feed:
    """Brings batches to the device while it computes, and measures how long it waits for them.

    Args:
      batches: iterator of (host arrays, position).
      put: function from host arrays to device arrays.
      clock: is told for how long the device had no batch.
    """

    def __init__(
        self,
        batches: Iterator[tuple[dict[str, np.ndarray], Any]],
        put: Callable[[dict[str, np.ndarray]], dict[str, Array]],
        clock: Clock,
    ) -> None:
        self._batches, self._put, self._clock = batches, put, clock
        self._watcher = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._finished = collections.deque()

    def next(self, while_computing: object = None) -> tuple[dict[str, Array], Any]:
        """(device arrays, position) of the next batch.

        When it returns, at most one more step is waiting behind the running one: a host that ran
        further ahead would fill the device with batches.

        Args:
          while_computing: the outputs of the step that was dispatched last.
        """
        start = time.monotonic()
        if while_computing is not None:
            self._finished.append(self._watcher.submit(_time_when_ready, while_computing))
        with self._clock.waiting_for("data"):
            batch, position = next(self._batches)
        batch = jax.block_until_ready(self._put(batch))
        running = self._finished[-1] if self._finished else None
        if running is None or running.done():
            idle_since = start if running is None else running.result()
            self._clock.charge_data(time.monotonic() - idle_since)
        if len(self._finished) > 1:
            self._finished.popleft().result()
        return batch, position

    def close(self) -> None:
        """Ends the thread."""
        self._watcher.shutdown()


def _time_when_ready(arrays):
    jax.block_until_ready(arrays)
    return time.monotonic()


def set_matmul_precision(precision: str) -> None:
    """Sets JAX's default precision of matrix products for this process.

    Args:
      precision: a name that JAX knows, or "default".

    Raises:
      UserError: JAX does not know the name.
    """
    try:
        jax.config.update(
            "jax_default_matmul_precision", None if precision == "default" else precision
        )
    except ValueError as error:
        raise UserError(
            f"config.matmul_precision {precision!r} is unknown to JAX; set it to 'default' or "
            "'float32'"
        ) from error
