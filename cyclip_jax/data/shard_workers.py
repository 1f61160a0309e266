"""Shards written by several processes, of which any may be killed."""

import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from cyclip_jax.data.shard_writer import Inputs, Preparation, sentence, write_shard
from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute, file_errors
from cyclip_jax.runtime.interrupts import interrupts_ignored


class _Deaf(multiprocessing.context.SpawnProcess):
    """A process that ignores Ctrl-C from its first moment on."""

    def start(self) -> None:
        """Starts it."""
        with interrupts_ignored():
            super().start()


class Workers(multiprocessing.context.SpawnContext):
    """A way to start processes: anew, as TensorFlow's threads do not survive a fork, and deaf."""

    Process = _Deaf  # pyright: ignore[reportAssignmentType]


def write_in_processes(
    shards: Mapping[str, Int[np.ndarray, "n"]],
    settings: Preparation,
    folder: epath.Path,
    progress: Callable[[int, int], object],
    workers: int,
) -> None:
    """Writes shards by `write_shard` in several processes.

    Args:
      shards: {name: numbers of its examples, int64 [n]}.
      settings: the options of the preparation.
      folder: the folder of the result.
      progress: function that is called with the numbers of examples done and dropped.
      workers: how many processes there are.

    Raises:
      UserError: a worker raised it, or a worker died.
    """
    context = Workers()
    waiting: Iterator[Any] = iter(shards.items())
    processes: dict[Any, Any] = {}
    try:
        for _ in range(min(workers, len(shards))):
            here, there = context.Pipe()
            arguments = (there, settings, os.fspath(folder))
            processes[here] = context.Process(target=_work, args=arguments, daemon=True)
            processes[here].start()
            there.close()  # so that a worker's death ends the pipe
        for connection in processes:
            connection.send(next(waiting))
        busy = set(processes)
        while busy:
            for connection in multiprocessing.connection.wait(busy):
                message = _receive(connection, processes[connection])
                if message is not None:
                    progress(*message)
                elif (shard := next(waiting, None)) is not None:
                    # It is one of ours: `wait` gives back what it was given, not any handle.
                    connection.send(shard)  # pyright: ignore[reportAttributeAccessIssue]
                else:
                    busy.discard(connection)
    finally:
        for connection, process in processes.items():
            if process.pid is not None:
                process.terminate()
                process.join()
            connection.close()


def _receive(connection, process):
    """A worker's (examples, dropped), or None at the end of a shard; raises UserError."""
    try:
        message = connection.recv()
    except (EOFError, ConnectionError) as error:
        process.join()
        code = process.exitcode
        why = "was killed, perhaps because memory ran out" if code == -signal.SIGKILL else "ended"
        raise UserError(
            f"a worker {why} (exit status {code}); the same command continues, with fewer "
            "--workers if memory is short"
        ) from error
    if isinstance(message, UserError):
        raise message
    return message


def _work(connection, settings, folder):
    """A worker: writes the shards it is told to, until it is terminated."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        source, folder = Inputs(settings), absolute(folder)
        while True:
            name, indices = connection.recv()
            write_shard(
                source, settings, folder, name, indices, lambda *counts: connection.send(counts)
            )
            connection.send(None)
    except (EOFError, ConnectionError):
        pass  # the parent is gone
    except (UserError, *file_errors()) as error:
        connection.send(UserError(sentence(error)))


def end_with_parent() -> None:
    """Ends a worker whose parent was killed; else both it and the next run would write."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
