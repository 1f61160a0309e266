"""Where the time of a run goes: one clock for its speed, its goodput and the watch over stalls."""

import collections
import contextlib
import dataclasses
import statistics
import threading
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

import jax

# What the time since the process began is divided into. "data" is time in which the device had
# nothing to compute because no batch was there; fetching one while it computes is "training".
PHASES: tuple[str, ...] = (
    "startup",
    "compile",
    "training",
    "data",
    "evaluation",
    "checkpoint",
    "profile",
    "end",
)

_KEPT = 100  # latest durations that a median is taken over
_KNOWN = 3  # durations that make a median


@dataclasses.dataclass(frozen=True)
class Moment:
    """What the main thread is doing.

    Attributes:
      phase: one of PHASES.
      waits_for: what the thread waits for in the phase, by default the phase itself.
      began: when this step or phase began, in seconds of the clock's `now`.
      seconds: how long it has lasted.
      usual_seconds: the median duration of those before it; None where there were too few.
    """

    phase: str
    waits_for: str
    began: float
    seconds: float
    usual_seconds: float | None


class Clock:
    """Counts the seconds of each phase of a run; other threads may read it.

    Args:
      began: when the process began, by `now`; by default this moment.
      earlier: the last heartbeat of the run's process before this one (see `heartbeat`), or None.
      now: function that returns the time in seconds and that no correction of the date affects.

    Attributes:
      step: the number of steps done.
    """

    def __init__(
        self,
        began: float | None = None,
        *,
        earlier: Mapping[str, Any] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._phase = self._waits_for = "startup"
        self._began = now() if began is None else began
        self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._durations = {phase: collections.deque(maxlen=_KEPT) for phase in PHASES}
        self._lap: tuple[int, float, float] | None = None
        earlier = earlier or {"step": 0, "seconds": {}, "seconds_per_step": 0.0}
        self.step: int = earlier["step"]
        self._seconds_per_step = earlier["seconds_per_step"]
        self._earlier = {phase: earlier["seconds"].get(phase, 0.0) for phase in (*PHASES, "redone")}

    def begin_training(self, step: int) -> None:
        """Begins the loop at `step`; work that earlier processes did beyond it counts as lost."""
        redone = max(self.step - step, 0) * self._seconds_per_step
        redone = min(redone, self._earlier["training"])
        self._earlier["training"] -= redone
        self._earlier["redone"] += redone
        self.step = step
        self._turn_to("training")
        self.lap(step)

    def end_training(self) -> None:
        """Ends the loop; the time from now on belongs to the phase "end"."""
        self._turn_to("end")

    def step_done(self, step: int) -> None:
        """Ends a step, after which `step` steps are done."""
        self._turn_to("training", is_done=True)
        self.step = step

    @contextlib.contextmanager
    def phase(self, phase: str, after: object = None) -> Generator[None, None, None]:
        """A context whose time belongs to another phase.

        Args:
          phase: one of PHASES.
          after: arrays that are waited for; that time belongs to the phase before.
        """
        jax.block_until_ready(after)
        before = self._phase
        self._turn_to(phase)
        try:
            yield
        finally:
            self._turn_to(before, is_done=True)

    @contextlib.contextmanager
    def waiting_for(self, what: str) -> Generator[None, None, None]:
        """A context in which the host waits for `what`; its time belongs to the current phase."""
        before, self._waits_for = self._waits_for, what
        try:
            yield
        finally:
            self._waits_for = before

    def charge_data(self, seconds: float) -> None:
        """Counts seconds of the current phase as "data"."""
        with self._lock:
            self._seconds[self._phase] -= seconds
            self._seconds["data"] += seconds

    def lap(self, step: int) -> tuple[int, float, float]:
        """(steps, seconds of training and data, of data alone) since the last call."""
        seconds = self.seconds()
        lap = step, seconds["training"] + seconds["data"], seconds["data"]
        before, self._lap = self._lap or lap, lap
        return lap[0] - before[0], lap[1] - before[1], lap[2] - before[2]

    def seconds(self) -> dict[str, float]:
        """{phase: seconds} since the process began."""
        with self._lock:
            seconds = dict(self._seconds)
            seconds[self._phase] += self._now() - self._began
        return seconds

    def metrics(self) -> dict[str, float]:
        """Shares of time spent in training, here and in all processes; seconds of each phase."""
        here, all_processes = self.seconds(), self._seconds_of_all()
        return {
            "goodput": here["training"] / sum(here.values()),
            "goodput_of_all_processes": all_processes["training"] / sum(all_processes.values()),
            **{f"{phase}_seconds": here[phase] for phase in PHASES[:-1]},
        }

    def mean_seconds(self, phase: str) -> float | None:
        """How long a phase lasted in the mean of the latest times; None where it never was."""
        with self._lock:
            durations = self._durations[phase]
            return statistics.mean(durations) if durations else None

    def heartbeat(self) -> dict[str, Any]:
        """What a supervisor and the run's next process need to know, as a dict for JSON."""
        moment = self.moment()
        usual = self._usual("training")
        return {
            "step": self.step,
            "phase": moment.phase,
            "phase_seconds": moment.seconds,
            "time": time.time(),
            "seconds": self._seconds_of_all(),
            "seconds_per_step": self._seconds_per_step if usual is None else usual,
        }

    def moment(self) -> Moment:
        """What the main thread is doing now."""
        with self._lock:
            seconds = self._now() - self._began
            usual = self._usual(self._phase)
            return Moment(self._phase, self._waits_for, self._began, seconds, usual)

    def phase_and_step(self) -> tuple[str, int]:
        """The phase and the number of steps done, for a signal's handler, which may wait for none.

        The thread that it interrupts may be in the middle of anything else here.
        """
        return self._phase, self.step

    def _turn_to(self, phase, *, is_done=False):
        with self._lock:
            now = self._now()
            self._seconds[self._phase] += now - self._began
            if is_done:
                self._durations[self._phase].append(now - self._began)
            self._phase = self._waits_for = phase
            self._began = now

    def _usual(self, phase):
        durations = self._durations[phase]
        return statistics.median(durations) if len(durations) >= _KNOWN else None

    def _seconds_of_all(self):
        here = self.seconds()
        return {phase: here.get(phase, 0.0) + before for phase, before in self._earlier.items()}
