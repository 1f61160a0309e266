"""How far something is, and how long it takes, as a person reads it."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import tqdm

_HOUR, _MINUTE = 3_600, 60  # seconds
_LINE = "{desc}{n_fmt} of {total_fmt}{unit}, {rate_fmt}, {remaining} left{postfix}"


@contextlib.contextmanager
def progress_bar(
    total: int, done: int, unit: str = "examples", *, title: str = ""
) -> Iterator[Callable[[int, int], None]]:
    """A function of (examples, dropped), shown as a bar, or in a log as a line a minute.

    Args:
      total, done: how many examples there are, and how many of them were done before.
      unit: what they are called.
      title: stands before the bar.
    """
    look: dict[str, Any] = {"mininterval": 0.2}
    if not sys.stderr.isatty():
        # maxinterval, because tqdm shows a bar again that has not been shown for so long.
        look = {"mininterval": 60, "maxinterval": 60, "file": _Lines(), "bar_format": _LINE}
    with tqdm.tqdm(
        total=total, initial=done, unit=f" {unit}", desc=title and f"{title}: ", **look
    ) as bar:
        dropped = 0

        def progress(more, more_dropped):
            nonlocal dropped
            dropped += more_dropped
            bar.set_postfix_str(f"{dropped} dropped" if dropped else "", refresh=False)
            bar.update(more)

        yield progress


class _Lines:
    """The error output, where a bar that begins its line anew becomes a line of its own."""

    def write(self, text: str) -> None:
        """Writes a state of the bar; what only moves within the line is left out."""
        if text := text.strip():
            sys.stderr.write(f"{text}\n")

    def flush(self) -> None:
        """Flushes."""
        sys.stderr.flush()


def say_above_bars(text: str) -> None:
    """Prints a line to the error output, above whatever bar is there."""
    with contextlib.suppress(OSError):  # a closed pipe ends no work
        tqdm.tqdm.write(text, file=sys.stderr)


def duration_in_words(seconds: float) -> str:
    """About how long, in two units at most: `3 h 20 min`, `2 days 5 h`, `45 s`."""
    if seconds < 1:
        return "less than 1 s"
    if round(seconds) < _MINUTE:
        return f"{seconds:.0f} s"
    minutes = round(seconds / _MINUTE)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / _HOUR), 24)
    head = "1 day" if days == 1 else f"{days} days"
    return f"{head} {hours} h" if hours else head
