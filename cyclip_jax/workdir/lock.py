"""One run at a time in a workdir: two would write the same files."""

import contextlib
import datetime
import fcntl
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from cyclip_jax.errors import UserError
from cyclip_jax.files import file_errors, is_missing, write_atomically
from cyclip_jax.workdir.layout import CHECKPOINTS, LOCK

BEAT_SECONDS = 15.0  # how often the holder of a lease writes
STALE_SECONDS = 90.0  # a lease that nobody wrote for so long is of a run that died


@contextlib.contextmanager
def lock_workdir(workdir: str | os.PathLike[str], *, enabled: bool) -> Iterator[None]:
    """A context in which a workdir can be written, and in which no other run writes to it.

    Local file systems lock (see `FileLock`), remote ones are leased (see `Lease`). Whoever only
    reads a workdir needs neither.

    Args:
      workdir: the run's directory, made where it does not exist.
      enabled: true on process 0 alone, which locks for all.

    Raises:
      UserError: another run is in the workdir, or it cannot be written.
    """
    if not enabled:
        yield
        return
    workdir = epath.Path(workdir)
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            lock = (Lease if "://" in str(workdir) else FileLock)(workdir / LOCK)
            stack.enter_context(contextlib.closing(lock))
            if (workdir / CHECKPOINTS).is_dir():  # it may be of another disk
                trial = workdir / CHECKPOINTS / LOCK
                write_atomically(trial, "can it be written?")
                trial.unlink()
        except file_errors() as error:
            raise UserError(
                f"--workdir={workdir} cannot be written: {error}; mend that, or choose another"
            ) from error
        yield


class FileLock:
    """A lock of the operating system, which ends with its process, however that ends.

    Args:
      path: the file that is locked; it says who holds the lock.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        while True:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_file_at(path, self._descriptor):
                    break
                os.close(self._descriptor)  # its last holder has just removed it
            except BlockingIOError:
                holder = os.pread(self._descriptor, 10_000, 0)
                os.close(self._descriptor)
                raise _in_use(path, _parsed(holder)) from None
        self._path = path
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(this_process()).encode(), 0)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Removes the file while it is locked, and then releases the lock."""
        os.unlink(self._path)
        os.close(self._descriptor)


def _is_file_at(path, descriptor):
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


class Lease:
    """A file that says who holds it, for file systems that cannot lock; its holder rewrites it.

    It is taken over where its holder is a dead process of this machine, or where it does not change
    for `stale_seconds` of this process's monotonic clock: no two clocks are ever compared. Two runs
    that start within a moment, or one that slept while its lease went stale, may both believe that
    they hold it; the one that does not finds that out by its next beat, and ends itself.

    Args:
      path: the file.
      beat_seconds: how often it is rewritten.
      stale_seconds: how long it must stay unchanged to count as stale.
      settle_seconds: after how long a holder checks whether another one came at the same moment.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        beat_seconds: float = BEAT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        settle_seconds: float = 2.0,
    ) -> None:
        self._path, self._me = epath.Path(path), this_process()
        holder = self._read()
        if holder and _lives(self._read, holder, beat_seconds, stale_seconds):
            raise _in_use(path, holder)
        self._beat(0)
        time.sleep(settle_seconds)
        holder = self._read()
        if holder.get("id") != self._me["id"]:
            raise _in_use(path, holder)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, args=(beat_seconds,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Removes the file, if it is still this run's."""
        self._closing.set()
        self._thread.join()
        if self._read().get("id") == self._me["id"]:
            self._path.unlink()

    def _keep(self, beat_seconds):
        beats = 0
        while not self._closing.wait(beat_seconds):
            try:
                holder = self._read()
                if holder.get("id", self._me["id"]) != self._me["id"]:
                    logging.error("%s; this run ends itself", _in_use(self._path, holder))
                    os._exit(1)  # a save would be one more file that both write
                beats += 1
                self._beat(beats)
            except file_errors() as error:  # the next beat may get through
                logging.warning("%s could not be rewritten: %s", self._path, error)

    def _beat(self, beats):
        write_atomically(self._path, json.dumps(self._me | {"beats": beats}))

    def _read(self):
        try:
            return _parsed(self._path.read_bytes())
        except file_errors() as error:
            if is_missing(error):
                return {}
            raise


def _lives(read, holder, beat_seconds, stale_seconds):
    """Whether the holder of a lease still runs."""
    me = this_process()
    if holder.get("machine") == me["machine"]:
        return _start_of(holder["pid"]) == holder["process_start"]
    logging.warning(
        "%s is taken; looking for up to %.0f s whether that run still lives", LOCK, stale_seconds
    )
    deadline = time.monotonic() + stale_seconds
    while time.monotonic() < deadline:
        time.sleep(min(beat_seconds / 3, stale_seconds))
        now = read()
        if now != holder:
            return bool(now)
    return False


def this_process() -> dict[str, Any]:
    """Who holds a lock, as a dict for JSON."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "began": datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds"),
        "id": uuid.uuid4().hex,
        "machine": this_machine(),
        "process_start": _start_of(os.getpid()),
    }


def this_machine() -> str:
    """What tells apart all machines, boots and containers in which a process id means something."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return uuid.uuid4().hex  # unknown, and so never the same


def _start_of(pid):
    """When a process of this machine began, in ticks since boot; None where there is none."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])  # dead, but not yet waited for


def _parsed(content):
    try:
        return json.loads(content)
    except ValueError:  # empty: a run that is just beginning
        return {}


def _in_use(path, holder):
    who = "another process, which has just begun"
    if holder:
        who = f"process {holder['pid']} on {holder['host']}, which began {holder['began']}"
    return UserError(
        f"{epath.Path(path).parent} is in use by {who}; wait until it ends, stop it, or choose "
        "another --workdir"
    )
