"""The learning rate as a function of the step."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cyclip_jax.errors import UserError, check_known

Schedule = Callable[[Int[Array, ""] | int], Float[Array, ""]]


def _cosine(progress):
    return (1 + jnp.cos(jnp.pi * progress)) / 2


# {name: function (p, f) -> the share of the highest rate, [], before the cool-down}
SCHEDULES: dict[str, Callable[[Float[Array, ""], float], Float[Array, ""]]] = {
    "cosine": lambda p, _: _cosine(p),
    "constant": lambda p, _: jnp.ones_like(p),
    "linear": lambda p, _: 1 - jnp.minimum(p, 1),
    "cosine_with_cooldown": lambda p, f: f + (1 - f) * _cosine(jnp.minimum(p, 1)),
}
_WITH_COOLDOWN = ("constant", "cosine_with_cooldown")


def learning_rate_schedule(
    learning_rate: float,
    *,
    warmup_steps: int,
    total_steps: int,
    offset_steps: int = 0,
    schedule: str = "cosine",
    cooldown_steps: int = 0,
    cooldown_from: float = 1.0,
) -> Schedule:
    """Linear warm-up, then a course to the end of the run.

    With w = warmup_steps, S = total_steps and c = cooldown_steps the rate of step t < w is
    base·(t+1)/w. With p = (t−w)/(S−c−w) that of w ≤ t < S−c is

        cosine                 base·½(1 + cos πp), with c = 0
        linear                 base·(1 − p), with c = 0
        constant               base
        cosine_with_cooldown   base·(f + (1−f)·½(1 + cos πp)), with f = cooldown_from

    and that of S−c ≤ t < S falls linearly to zero: base·(S−t)/c after a constant rate, and
    base·f·(S−t)/c after a cosine.

    Args:
      learning_rate: the highest rate, which the warm-up ends with.
      warmup_steps: w, the length of the warm-up.
      total_steps: S, the length of the run.
      offset_steps: a number that is added to the step. The schedule then starts so many steps late
        in its course, and the last so many steps of the run lie past its end. There "cosine" rises
        again, as in the published code; the others stay at the rate of their end.
      schedule: one of SCHEDULES.
      cooldown_steps: c, the length of the cool-down.
      cooldown_from: f, the share of the highest rate that the cool-down after a cosine begins with.

    Returns:
      A function of the step t = 0, 1, … (int scalar) that gives a float scalar.

    Raises:
      UserError: the warm-up is negative, or with the cool-down as long as the run.
    """
    check_lengths(warmup_steps, total_steps, cooldown_steps)
    cooldown_begins = total_steps - cooldown_steps

    def rate(step):
        step = jnp.asarray(step + offset_steps, jnp.result_type(float))
        warmup = (step + 1) / max(warmup_steps, 1)
        progress = (step - warmup_steps) / (cooldown_begins - warmup_steps)
        course = SCHEDULES[schedule](progress, cooldown_from)
        if cooldown_steps:
            course = course * jnp.clip((total_steps - step) / cooldown_steps, 0, 1)
        return learning_rate * jnp.where(step < warmup_steps, warmup, course)

    return rate


def check_warmup(
    warmup_steps: int, total_steps: int | None, name: str = "config.optimizer.warmup_steps"
) -> None:
    """Raises UserError unless a warm-up ends before the run, whose length may not be known yet."""
    if total_steps is None and warmup_steps < 0:
        raise UserError(f"{name} {warmup_steps} must be at least 0")
    if total_steps is not None and not 0 <= warmup_steps < total_steps:
        raise UserError(
            f"{name} {warmup_steps} must be at least 0 and less than the run's {total_steps} steps"
        )


def check_lengths(warmup_steps: int, total_steps: int | None, cooldown_steps: int) -> None:
    """Raises UserError unless warm-up and cool-down leave a step of a run between them.

    Args:
      warmup_steps: config.optimizer.warmup_steps.
      total_steps: length of the run; None where it is not known yet.
      cooldown_steps: config.optimizer.cooldown_steps.
    """
    check_warmup(warmup_steps, total_steps)
    if total_steps is not None and warmup_steps + cooldown_steps >= total_steps:
        raise UserError(
            f"config.optimizer.cooldown_steps {cooldown_steps} must be less than the "
            f"{total_steps - warmup_steps} steps that the warm-up leaves of the run's {total_steps}"
        )


def check_schedule(schedule: str, cooldown_steps: int, cooldown_from: float) -> None:
    """Raises UserError where the keys of a schedule do not suit each other."""
    check_known("config.optimizer.schedule", schedule, SCHEDULES)
    if cooldown_steps < 0:
        raise UserError(f"config.optimizer.cooldown_steps {cooldown_steps} must be at least 0")
    if not 0 <= cooldown_from <= 1:
        raise UserError(f"config.optimizer.cooldown_from {cooldown_from} must be from 0 to 1")
    if cooldown_steps and schedule not in _WITH_COOLDOWN:
        raise UserError(
            f"config.optimizer.schedule {schedule!r} falls to zero by itself and has no cool-down; "
            f"set cooldown_steps to 0, or the schedule to one of {', '.join(_WITH_COOLDOWN)}"
        )
    if schedule == "cosine_with_cooldown" and not cooldown_steps:
        raise UserError(
            "config.optimizer.schedule 'cosine_with_cooldown' needs cooldown_steps; set "
            "config.optimizer.cooldown_steps to the steps in which the rate falls to zero"
        )
