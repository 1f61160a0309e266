"""Keeps the host's memory flat over a long run by giving back what glibc and Python hold."""

import contextlib
import ctypes
import gc
import os

_M_ARENA_MAX = -8  # of glibc's malloc.h


def limit_arenas() -> None:
    """Has glibc keep as many heaps as there are cores, not eight times as many.

    Every evaluation opens an input pipeline with threads of its own, which spread over all heaps
    until each has gaps. Call it before threads begin. If MALLOC_ARENA_MAX is set in the
    environment, that holds instead.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        with contextlib.suppress(AttributeError, OSError):  # other C libraries have no such thing
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, max(os.cpu_count() or 2, 2))


def give_back_memory() -> None:
    """Gives the system the memory that nobody uses any more.

    The graph of an input pipeline refers to itself, so that only the garbage collector frees it,
    and Python seldom runs that over all objects. Besides, glibc keeps what is freed.
    """
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
