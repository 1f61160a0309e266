"""Imported by a command before all else: when its process began, and what must not end it."""

import signal
import time

BEGAN = time.monotonic()

# By default it ends a process, and importing JAX takes seconds; see profiling.py.
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
