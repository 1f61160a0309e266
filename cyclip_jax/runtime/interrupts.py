"""Ctrl-C and SIGTERM, heard in the moment in which they come, and what Ctrl-C does to a command."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from cyclip_jax.runtime.progress import say_above_bars

INTERRUPTED = 130  # the exit status that shells give to what Ctrl-C has ended
_TIDYING_SECONDS = 5.0  # for removing what is half written; all of it can bear a kill, too


@contextlib.contextmanager
def heard_at_once(hear: Callable[[int], bool]) -> Iterator[None]:
    """A context in which a thread hears signals at once.

    Python runs handlers in the main thread alone, and there only between two instructions: a
    compiler or a device may keep it for minutes.

    Args:
      hear: function of a signal's number that the thread calls, of signals that have a handler. It
        returns whether the signal concerns it; if not, the context around this one hears it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # there is nothing to hear: signals belong to the main thread
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    outer = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def listen() -> None:
        while number := os.read(reading, 1):
            if not hear(number[0]) and outer != -1:
                os.write(outer, number)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(outer)
        os.close(writing)  # which ends the thread
        thread.join()
        os.close(reading)


@contextlib.contextmanager
def ctrl_c_ends(told: str) -> Iterator[None]:
    """A context of a whole command, which Ctrl-C ends with one line and status 130.

    The line is said at once. Then KeyboardInterrupt passes through the command, so that it tidies
    up. Where that takes too long, or at a second Ctrl-C, the process ends as it is.

    Args:
      told: the line.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # whoever started the command in the background does not want it to hear
        return
    interrupt = _Interrupt(told)
    signal.signal(signal.SIGINT, interrupt.handle)
    with heard_at_once(interrupt.hear):
        try:
            yield
        finally:
            if interrupt.has_come:  # whatever else was raised on the way out
                interrupt.end()


class _Interrupt:
    """A Ctrl-C that ends the command.

    Attributes:
      has_come: whether there was one.
    """

    def __init__(self, told: str) -> None:
        self.has_come = False
        self._told, self._is_told, self._turn = told, False, threading.Lock()

    def handle(self, *_: Any) -> None:
        """What Python calls in the main thread."""
        self.has_come = True
        # Libraries that it passes through, and threads that end early, would show tracebacks.
        sys.unraisablehook = threading.excepthook = lambda _: None
        raise KeyboardInterrupt

    def hear(self, number: int) -> bool:
        """What the listening thread calls."""
        if number != signal.SIGINT:
            return False
        if self._is_told:
            os._exit(INTERRUPTED)
        timer = threading.Timer(_TIDYING_SECONDS, os._exit, [INTERRUPTED])
        timer.daemon = True
        timer.start()
        self._tell()
        return True

    def end(self) -> None:
        """Ends the process, by no way that waits for threads or says anything."""
        self._tell()
        with contextlib.suppress(OSError, ValueError):  # a closed pipe
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(INTERRUPTED)

    def _tell(self):
        with self._turn:
            if not self._is_told:
                tell_of_interrupt(self._told)
            self._is_told = True


def tell_of_interrupt(told: str) -> None:
    """Says the line of a Ctrl-C; a terminal has shown ^C where the line would stand."""
    say_above_bars(f"\n{told}" if sys.stderr.isatty() else told)


@contextlib.contextmanager
def interrupts_ignored() -> Iterator[None]:
    """A context whose child processes ignore Ctrl-C for good, as they inherit it.

    A terminal sends it to all of them; the parent ends its children itself, and speaks for them.
    """
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
