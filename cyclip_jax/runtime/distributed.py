"""Several processes of one run: how they find each other, and how they end together.

All of it uses JAX's own coordination service, which process 0 hosts. Without this module the loss
of a process would end the others with an abort in C++, or leave them in a collective that never
completes. With it they say which process was lost.
"""

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Generator
from typing import Any

import jax
from jax.experimental import multihost_utils

from cyclip_jax.errors import UserError
from cyclip_jax.runtime.agreement import wait_for_all_processes
from cyclip_jax.runtime.distributed_flags import HEARTBEAT_TIMEOUT, INITIALIZATION_TIMEOUT

_LEAVING_SECONDS = 30  # at most, between the first process that leaves and the last
_OWN_WORDS_SECONDS = 3  # in which a process may say itself why all of them end
_LOST = (
    "is lost: killed, out of reach, or ended by what its own output says. This process ends too; "
    "the same command, started for all again, continues from the last checkpoint"
)


def join(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    initialization_timeout: int = INITIALIZATION_TIMEOUT,
    heartbeat_timeout: int = HEARTBEAT_TIMEOUT,
) -> None:
    """Joins the other processes of the run, and watches them until `leave`.

    Call it before JAX is used. The first three arguments are only for processes that no cluster
    started.

    Args:
      coordinator_address: host:port of process 0.
      num_processes: how many processes there are.
      process_id: which of them this one is, from 0.
      initialization_timeout: seconds within which all processes must join.
      heartbeat_timeout: seconds of silence after which a process counts as lost.

    Raises:
      UserError: neither the arguments nor a cluster say which processes there are.
    """
    # Without it the service aborts everyone on a loss, in words that name nobody.
    jax.config.update("jax_enable_recoverability", True)
    # JAX, too, would abort at the end of the time, in words that name nobody.
    waiting = threading.Timer(
        max(initialization_timeout - 1, 0.5),
        _end,
        [
            f"not all {num_processes or ''} processes came within {initialization_timeout} s to "
            f"{coordinator_address or 'the coordinator'}; start those that are missing, and see "
            "that they can reach it, or set --initialization_timeout higher"
        ],
    )
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            initialization_timeout=initialization_timeout + 30,
            heartbeat_timeout_seconds=heartbeat_timeout,
        )
    except ValueError as error:
        raise UserError(
            f"--distributed: no cluster was found that says which processes there are ({error}); "
            "set --coordinator_address, --num_processes and --process_id"
        ) from error
    finally:
        waiting.cancel()
    if jax.process_count() > 1:
        if jax.process_index() != 0:
            _explain_aborts()
        _watch.start(heartbeat_timeout)


def join_as_told(values: Any, *, saves: bool = True) -> None:
    """Joins the other processes where the flags say so; call it before JAX is used.

    Args:
      values: the flags.
      saves: whether there is something to save before SIGTERM ends the processes; else it simply
        ends them, however many there are.
    """
    if not saves:
        jax.config.update("jax_enable_preemption_service", False)
    if values.distributed:
        join(
            values.coordinator_address,
            values.num_processes,
            values.process_id,
            initialization_timeout=values.initialization_timeout,
            heartbeat_timeout=values.heartbeat_timeout,
        )


def leave() -> None:
    """Leaves the other processes, so that none of them takes this process's end for a loss."""
    if not _watch.started:
        return
    _watch.stop()
    if jax.process_index() == 0:
        # With it goes the service that the others still need for their goodbyes.
        alone = threading.Thread(target=_wait_until_alone, daemon=True)
        alone.start()
        alone.join(_LEAVING_SECONDS)
    jax.distributed.shutdown()


def end(status: int | str | None) -> None:
    """Ends the process as sys.exit(status) does, after `leave`.

    A process whose status is a number has done its part, and waits until all others have: some of
    them write reports or are slow, and would take its end for a loss.

    Args:
      status: the exit status, or a sentence that says what is wrong.
    """
    if not _watch.started:
        sys.exit(status)
    if not isinstance(status, str):
        with failing_together():
            _watch.grace = _LEAVING_SECONDS
            wait_for_all_processes()
    leave()
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    _exit(status)


@contextlib.contextmanager
def failing_together() -> Generator[None, None, None]:
    """A context whose exceptions end this process at once where there are several.

    Whatever the process would still do, such as waiting for a checkpoint, would wait for the other
    processes, which may be gone or may be waiting for this one. The others learn of its end and end
    themselves. An exception may also come from the loss of another process, which is then named.
    """
    try:
        yield
    except BaseException as error:
        if not _watch.started:
            raise
        if isinstance(error, UserError):
            _say(f"error: {error}")
        else:
            traceback.print_exc()
            _watch.wait_for_verdict()
        leave()
        _exit(1)


class _Watch:
    """Asks the coordination service, again and again, who is still there.

    Attributes:
      grace: seconds between a loss and the end that follows from it.
      kept: what C code may call, and so has to live as long as the process.
    """

    def __init__(self):
        self.started = False
        self.grace = _OWN_WORDS_SECONDS
        self.kept: object = None
        self._stopping = threading.Event()

    def start(self, heartbeat_timeout):
        self.started, self._patience = True, heartbeat_timeout
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self):
        self.started = False
        self._stopping.set()

    def wait_for_verdict(self):
        """Returns where nobody is lost."""
        self._thread.join(1.5 * self._patience + self.grace)

    def _run(self):
        # Process 0 sets the pace: the others, who wait for its question, learn of its end at once.
        pause = self._patience / 10 if jax.process_index() == 0 else 0
        while not self._stopping.wait(pause):
            lost = _lost_processes()
            if lost and not self._stopping.wait(0 if 0 in lost else self.grace):
                names = ", ".join(map(str, sorted(lost)))
                _end(f"process {names} of {jax.process_count()} {_LOST}")


_watch = _Watch()


def _lost_processes():
    """The indices of those that the coordination service hears no more, after asking all others."""
    try:
        with multihost_utils.live_devices(jax.devices()) as live:
            pass
    except multihost_utils.ProcessFailureError as failure:
        return {device.process_index for device in failure.failed_devices}
    except jax.errors.JaxRuntimeError:
        return {0}  # it answers these questions
    return set(range(jax.process_count())) - {device.process_index for device in live}


def _explain_aborts():
    """Has an abort followed by what it most likely means.

    At the end of process 0, JAX aborts the others in C++ from a thread of its own. Python's signal
    handlers run only in the main thread, which then never runs again.
    """

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def explain(_):
        faulthandler.dump_traceback()
        _say(
            "error: this process was aborted. If JAX says above that its coordination service "
            f"failed, process 0 of {jax.process_count()}, where that runs, {_LOST}"
        )

    ctypes.CDLL(None).signal(int(signal.SIGABRT), explain)
    _watch.kept = explain


def _wait_until_alone():
    with contextlib.suppress(RuntimeError):  # the service has ended meanwhile
        while len(_lost_processes()) < jax.process_count() - 1:
            time.sleep(0.1)


def _end(reason):
    _say(f"error: {reason}")
    _exit(1)


def _say(text):
    # One write and no buffer: the process may be aborted in the next moment.
    sys.stdout.flush()
    os.write(2, f"{text}\n".encode())


def _exit(status):
    # Not sys.exit: Python would end while a thread still asks the service, and C++ then aborts.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
