"""Signs of life: a heartbeat file, and a report of anything that takes far longer than usual."""

import json
import logging
import os
import sys
import threading
import traceback
from typing import Any, Protocol

from etils import epath

from cyclip_jax.files import write_json
from cyclip_jax.runtime.clock import Clock, Moment
from cyclip_jax.workdir.layout import HEARTBEAT

_HEARTBEAT_SECONDS = 30.0
LOOK_SECONDS = 1.0
LEAST_SECONDS = 10.0  # less is no stall, however short a step is
_UNKNOWN_SECONDS = 600.0  # the same of what has not happened often enough to have a median
_WAITING = {
    "startup": "the run to start",
    "compile": "the compiler",
    "training": "the device, which computes a step",
    "data": "data",
    "evaluation": "an evaluation",
    "checkpoint": "a checkpoint",
    "profile": "the profiler",
    "end": "the run to end",
}


class Console(Protocol):
    """Where a run tells a person how it goes (see workdir/console.py)."""

    def say(self, text: str) -> None:
        """Shows a line to a person, and writes it to the log."""
        ...

    def log(self, text: str) -> None:
        """Writes text to the log alone."""
        ...


class Watch:
    """Threads that look at the main thread's clock while a run lasts.

    One writes `<workdir>/heartbeat.json`. Another reports a stall: a step, a save or an evaluation
    that takes `stall_factor` times its median. It says what the host waits for once while the stall
    lasts, and once when it is over. What every thread is doing then goes to the log.

    Args:
      clock: the run's clock.
      workdir: the run's directory, local or remote.
      stall_factor: how many times the median is a stall; with 0 none is reported.
      console: the console of process 0, which also writes the heartbeat. It is None on the other
        processes, which log their own stalls.
    """

    def __init__(
        self,
        clock: Clock,
        workdir: str | os.PathLike[str],
        *,
        stall_factor: float,
        console: Console | None,
    ) -> None:
        self._clock = clock
        self._path = epath.Path(workdir) / HEARTBEAT
        self._stall_factor = stall_factor
        self._console = console
        self._watched = threading.get_ident()
        self._stall: Moment | None = None
        self._has_failed = False
        self._turn = threading.Lock()
        self._closed = threading.Event()
        jobs = [(self.look, LOOK_SECONDS)] if stall_factor > 0 else []
        # Of its own, as a remote file system may be what stalls.
        jobs += [(self.beat, _HEARTBEAT_SECONDS)] if console is not None else []
        self._threads = [
            threading.Thread(target=self._repeat, args=job, daemon=True) for job in jobs
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ends the threads, and writes a last heartbeat, unless the one before is still stuck."""
        self._closed.set()
        for thread in self._threads:
            thread.join(timeout=LEAST_SECONDS)
        is_stuck = any(thread.is_alive() for thread in self._threads)  # in a file system, say
        if self._console is not None and not is_stuck:
            self.beat()

    def _repeat(self, job, seconds):
        job()
        while not self._closed.wait(seconds):
            job()

    def beat(self) -> None:
        """Writes the heartbeat."""
        try:
            with self._turn:  # the clock, too, is read in turn: the file never goes back in time
                write_json(self._path, self._clock.heartbeat())
        except Exception as error:  # of the file system, which may be remote
            if not self._has_failed:
                self._say(f"{self._path} could not be written ({error}); the run goes on")
            self._has_failed = True
        else:
            self._has_failed = False

    def look(self) -> None:
        """Reports a stall that has begun or ended."""
        moment = self._clock.moment()
        if self._stall is not None and moment.began != self._stall.began:
            seconds = moment.began - self._stall.began
            self._say(f"the stall after step {self._stalled_step} is over; it took {seconds:.0f} s")
            self._stall = None
        usual = moment.usual_seconds
        limit = _UNKNOWN_SECONDS if usual is None else self._stall_factor * usual
        if self._stall is None and moment.seconds > max(limit, LEAST_SECONDS):
            self._stall, self._stalled_step = moment, self._clock.step
            compared = "" if usual is None else f", where {usual:.2g} s are usual"
            self._say(
                f"stalled after step {self._clock.step}: for {moment.seconds:.0f} s{compared}, the "
                f"host waits for {_WAITING[moment.waits_for]}",
                details=_stacks(self._watched),
            )

    def _say(self, text, details=""):
        if self._console is None:
            logging.warning("%s\n%s", text, details)
        else:
            self._console.say(text)
            if details:
                self._console.log(details)


def read_heartbeat(workdir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The last heartbeat of a run (see `Clock.heartbeat`), or None where there is none."""
    try:
        return json.loads((epath.Path(workdir) / HEARTBEAT).read_text())
    except (OSError, ValueError):  # all that is lost with it is the time of earlier processes
        return None


def _stacks(first):
    """What every thread is doing, as text; the thread `first` comes first."""
    frames = sys._current_frames()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    idents = sorted(frames.keys() - {threading.get_ident()}, key=lambda ident: ident != first)
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frames[ident]))}"
        for ident in idents
    )
