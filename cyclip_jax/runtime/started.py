"""What a command does before all else; importing this module, or any other, does none of it."""

import functools
import os
import signal
import time
import types

_IMPORTED = time.monotonic()


def prepare_command() -> None:
    """Readies the process of a command, before anything slow is imported.

    SIGUSR1 asks a run for a profile (see profiling.py). By default it ends a process, and importing
    JAX takes seconds. Keras and scikit-learn, which TensorFlow would import, take seconds too, and
    nothing here uses them.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    quieten_tensorflow()


def quieten_tensorflow() -> None:
    """Keeps TensorFlow, which only reads data here, from announcing itself where it is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # not used, but announced


@functools.cache
def import_tensorflow() -> types.ModuleType:
    """TensorFlow, imported where data are first opened: that takes seconds.

    It only reads data here. The accelerators belong to JAX; TensorFlow would otherwise reserve
    their memory.
    """
    quieten_tensorflow()
    import tensorflow

    tensorflow.config.set_visible_devices([], "GPU")
    return tensorflow


def process_began() -> float:
    """When this process began, by time.monotonic, in seconds; without /proc, a moment later."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = float(file.read().rpartition(b")")[2].split()[19])  # field 22, after boot
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return _IMPORTED
    return time.monotonic() - age
