"""How far something is, and how long it takes, as a person reads it."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import tqdm

_HOUR, _MINUTE = 3_600, 60  # seconds


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
    interval = 0.2 if sys.stderr.isatty() else 60
    with tqdm.tqdm(
        total=total, initial=done, unit=f" {unit}", mininterval=interval, desc=title or None
    ) as bar:
        dropped = 0

        def progress(more, more_dropped):
            nonlocal dropped
            dropped += more_dropped
            bar.set_postfix_str(f"{dropped} dropped" if dropped else "", refresh=False)
            bar.update(more)

        yield progress


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
