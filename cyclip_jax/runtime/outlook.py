"""What a run will take, said once when its first steps are done: time and memory."""

from collections.abc import Callable

from cyclip_jax.runtime.clock import Clock
from cyclip_jax.runtime.progress import duration_in_words

_LEAST = 10  # steps that tell how long a step takes


class Outlook:
    """Says about how long the rest of a run takes, and how much memory it holds.

    It looks at what the clock has measured where a step is logged, and waits for no device.

    Args:
      clock: the run's clock.
      total_steps: the length of the run.
      every: {phase of the clock: after how many steps it is due, 0 is the last step alone}.
      memory: function that says in words what is held; it is asked once.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        total_steps: int,
        every: dict[str, int],
        memory: Callable[[], str],
    ) -> None:
        self._clock, self._memory = clock, memory
        self._total_steps, self._every = total_steps, every
        self._steps, self._seconds = 0, 0.0
        self._laps, self._is_said = 0, False

    def after_lap(self, step: int, steps: int, seconds: float) -> str | None:
        """The sentence, where it can be said and was not; else None.

        Args:
          step: the number of steps done.
          steps, seconds: of the lap that ends here, as `Clock.lap` gives them.
        """
        self._laps += 1
        if self._laps == 1 and steps < _LEAST:
            return None  # the first step is slower than all others
        self._steps, self._seconds = self._steps + steps, self._seconds + seconds
        left = self._total_steps - step
        if self._is_said or self._steps < _LEAST or not left:
            return None
        self._is_said = True
        return f"{self._time_left(step, left)}; {self._memory()}"

    def _time_left(self, step, left):
        total, counted, unknown = left * self._seconds / self._steps, [], []
        for phase, every in self._every.items():
            times = _times_due(step, self._total_steps, every)
            usual = self._clock.mean_seconds(phase)
            told = f"{times:,} {phase}{'' if times == 1 else 's'}"
            (unknown if usual is None else counted).append(told)
            total += 0 if usual is None else times * usual
        steps = "step" if left == 1 else f"{left:,} steps"
        what = " and ".join([f"the remaining {steps}", *counted])
        told = f"about {duration_in_words(total)} at this speed for {what}"
        verb = "comes" if len(unknown) == 1 and unknown[0].startswith("1 ") else "come"
        return told + (f"; {' and '.join(unknown)} {verb} on top" if unknown else "")


def _times_due(step, total_steps, every):
    """How often something is due from `step` on, which is so at the last step anyway.

    What is due at `step` itself comes after the step is logged.
    """
    if not every:
        return 1
    return -(-total_steps // every) - (step - 1) // every
