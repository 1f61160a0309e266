"""Profiles of chosen steps, for xprof and TensorBoard."""

import contextlib
import os
import pathlib
import signal
import tempfile
from collections.abc import Callable, Generator
from typing import Any

import jax
from etils import epath

from cyclip_jax.errors import UserError
from cyclip_jax.files import write_atomically
from cyclip_jax.runtime.clock import Clock
from cyclip_jax.workdir.layout import PROFILES

_STEPS_ON_REQUEST = 10
_FILES = (".xplane.pb", ".trace.json.gz")


def check_profile_steps(steps: Any) -> None:
    """Raises UserError unless `steps` is None or (first, last)."""
    is_pair = isinstance(steps, tuple) and [type(step) for step in steps] == [int, int]
    if steps is not None and not (is_pair and 1 <= steps[0] <= steps[1]):
        raise UserError(
            f"config.profile_steps {steps!r} is not (first, last) with 1 <= first <= last; set it "
            "to two steps, such as (10, 19), which profiles ten"
        )


class Profiler:
    """Traces steps with jax.profiler, to `<workdir>/profile/plugins/profile/step_<first>/`.

    Each process writes a file of its own. SIGUSR1 asks for a trace of the next ten steps of the
    process that gets it. It may come at any time; during a trace it asks for ten more steps.

    Args:
      workdir: the run's directory, local or remote.
      steps: (first, last), numbered as in metrics.jsonl, or None.
      clock: the run's clock.
      say: function that shows a line of text to a person.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        steps: tuple[int, int] | None,
        *,
        clock: Clock,
        say: Callable[[str], object],
    ) -> None:
        self._directory = epath.Path(workdir) / PROFILES / "plugins" / "profile"
        self._steps = range(0) if steps is None else range(steps[0], steps[1] + 1)
        self._clock, self._say = clock, say
        self._is_requested = False
        self._trace = None

    def __enter__(self) -> "Profiler":
        self._previous = signal.signal(signal.SIGUSR1, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        self._finish(None)
        signal.signal(signal.SIGUSR1, self._previous)

    def _request(self, *_):
        self._is_requested = True

    @contextlib.contextmanager
    def step(self, step: int, state: object) -> Generator[None, None, None]:
        """A context for a step, whose number names it in the trace.

        Args:
          step: the number of the step.
          state: the state before the step. A trace waits for it, so as to show no earlier steps.
        """
        if self._trace is None:
            if self._is_requested:
                self._is_requested = False
                self._steps = range(step, step + _STEPS_ON_REQUEST)
            if step in self._steps:
                self._start(step, state)
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def step_done(self, step: int, state: object) -> None:
        """Ends the trace if this was its last step; `state` is the step's result."""
        if self._trace is not None and step + 1 not in self._steps:
            self._finish(state)

    def _start(self, step, state):
        with self._clock.phase("profile", after=state):
            folder = tempfile.TemporaryDirectory(prefix="profile_")
            try:
                jax.profiler.start_trace(folder.name)
            except RuntimeError as error:  # another trace is being taken
                self._steps = range(0)
                folder.cleanup()
                self._say(f"step {step} is not profiled: {error}")
            else:
                self._trace = step, folder

    def _finish(self, state):
        """Writes the trace, if there is one."""
        if self._trace is None:
            return
        (first, folder), self._trace = self._trace, None
        directory = self._directory / f"step_{first}"
        with self._clock.phase("profile", after=state), folder:
            try:
                jax.profiler.stop_trace()
                # Here, not by the profiler: it names files by host and second, and knows no gs://.
                for ending in _FILES:
                    for path in pathlib.Path(folder.name).rglob(f"*{ending}"):
                        name = f"process_{jax.process_index()}{ending}"
                        write_atomically(directory / name, path.read_bytes())
            except Exception as error:  # training is worth more than a picture of it
                self._say(f"the profile from step {first} on was not written: {error}")
            else:
                self._say(f"profile: {directory}; xprof and TensorBoard show it")
