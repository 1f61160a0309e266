"""The memory that a run holds, and how it stays flat: what glibc and Python keep is given back."""

import contextlib
import ctypes
import gc
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

_GIBIBYTE = 2**30
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


class Device(Protocol):
    """What JAX knows of a device."""

    def memory_stats(self) -> Mapping[str, int] | None:
        """{name: bytes}; None where the device has no memory of its own, as the CPU."""
        ...


def peak_in_words(devices: Sequence[Device]) -> str:
    """How much memory has been held at once: of the devices, and by this process on the host.

    Nothing is computed on the devices, and nothing is waited for.

    Args:
      devices: those of this process. Of several the fullest one is told.
    """
    host = f"{_host_peak() / _GIBIBYTE:.1f} GiB"
    told = [stats for device in devices if (stats := _stats(device)) is not None]
    if not told:
        return f"{host} of memory at the peak"
    fullest = max(told, key=lambda stats: stats["peak_bytes_in_use"])
    amount = f"{fullest['peak_bytes_in_use'] / _GIBIBYTE:.1f}"
    if fullest.get("bytes_limit"):
        amount += f" of {fullest['bytes_limit'] / _GIBIBYTE:.1f}"
    whose = "each device's" if len(devices) > 1 else "the device's"
    return f"{amount} GiB of {whose} memory at the peak, {host} of the host's"


def _stats(device):
    """What a device tells of its memory, or None."""
    try:
        stats = device.memory_stats()
    except Exception:  # of the device's plugin, whatever it raises; the run is worth more
        return None
    return stats if stats and "peak_bytes_in_use" in stats else None


def _host_peak():
    """The most bytes that this process has held in the host's memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
