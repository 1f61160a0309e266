"""What a command does first; importing a module never does it."""

import functools
import os
import signal
import time
import types

_IMPORTED = time.monotonic()


def prepare_command() -> None:
    """Prepares the process of a command before anything slow is imported.

    SIGUSR1 asks a run for a profile (see profiling.py). By default it ends a process, and importing
    JAX takes seconds. Keras and scikit-learn, which TensorFlow would import, take seconds too, and
    nothing here uses them.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    quieten_tensorflow()


def quieten_tensorflow() -> None:
    """Keeps TensorFlow, which only reads data here, from printing notes when it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # not used, but announced


@functools.cache
def import_tensorflow() -> types.ModuleType:
    """Imports TensorFlow, which takes seconds, when data are first opened.

    It only reads data here. The accelerators belong to JAX; TensorFlow would otherwise reserve
    their memory.
    """
    quieten_tensorflow()
    import tensorflow

    tensorflow.config.set_visible_devices([], "GPU")
    return tensorflow


def process_began() -> float:
    """When this process began, in seconds of time.monotonic; without /proc it is a little late."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = float(file.read().rpartition(b")")[2].split()[19])  # field 22, after boot
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return _IMPORTED
    return time.monotonic() - age
