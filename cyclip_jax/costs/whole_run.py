"""The least that a whole run takes, from the bounds of its steps."""

from collections.abc import Mapping, Sequence
from typing import Any


def least_of_run(phases: Sequence[Mapping[str, Any]], *, steps: int, chips: int) -> dict[str, Any]:
    """A run of which every step takes as long as the slowest bound of its phase.

    Args:
      phases: of each phase of the run, in their order: "first_step", and "floors", {bound: seconds}
        as `aot.floors` returns them.
      steps: the length of the run.
      chips: the number of chips.

    Returns:
      {"steps": steps, "hours": hours, "chip_hours": hours times chips}.
    """
    ends = [*(phase["first_step"] for phase in phases[1:]), steps]
    seconds = sum(
        (end - phase["first_step"]) * max(phase["floors"].values())
        for phase, end in zip(phases, ends, strict=True)
    )
    return {"steps": steps, "hours": seconds / 3600, "chip_hours": seconds / 3600 * chips}


def line_of_run(least: Mapping[str, Any], price: float | None = None) -> str:
    """What `least_of_run` returns as a line; with the price of a chip-hour, what the run costs."""
    line = (
        f"the whole run: {least['steps']:,} steps, at least {least['hours']:,.3g} hours, "
        f"{least['chip_hours']:,.4g} chip-hours"
    )
    if price is None:
        return line
    return f"{line}, {least['chip_hours'] * price:,.4g} at {price:g} a chip-hour"
