"""Runs a command until it has finished its work, starting it again after a crash.

    python launch/supervise.py [--restarts=N] [--log=FILE] -- python -m cyclip_jax.main …

The command is one that continues where it was, as a run with a workdir does. It is started again
when it fails, is killed, or was stopped before its end by a signal that came from elsewhere, as
before a machine's maintenance (exit status 75, see --stopped_exit_code of cyclip_jax.main). It is
not when it has finished (0), when it failed quickly three times in a row (what is wrong then will
not mend itself), when the restarts are used up, or when the supervisor itself is told to end:
SIGTERM and Ctrl-C are handed on, the command saves, and its exit status is the supervisor's.

Needs nothing but Python.
"""

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: the same command continues
QUICK_SECONDS, QUICK_FAILURES = 60, 3


class Supervisor:
    """Processes that work together, started again together.

    Args:
      commands: a list of (name, argv, environment) for each start, as a function of the attempt,
        counted from 0; names stand before each line of output where there are several.
      restarts: how often at most they are started again.
      grace: seconds in which the others of a failed process are to end by themselves.
      log: a file that their output is appended to, or None.
    """

    def __init__(self, commands, *, restarts, grace, log=None):
        self._commands, self._restarts, self._grace = commands, restarts, grace
        self._log = log
        self._children, self._writing = [], threading.Lock()
        self._asked_to_stop = False

    def run(self):
        """Runs the processes to their end, and returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        attempt = quick_failures = 0
        while True:
            start = time.monotonic()
            status = self._run_once(attempt)
            if status == 0 or self._asked_to_stop:
                return status
            was_quick = status != STOPPED and time.monotonic() - start < QUICK_SECONDS
            quick_failures = quick_failures + 1 if was_quick else 0
            if attempt == self._restarts:
                self._say(f"{_ending(status)}; no restart is left of {self._restarts}")
                return status
            if quick_failures == QUICK_FAILURES:
                self._say(
                    f"{_ending(status)}, {QUICK_FAILURES} times in a row within {QUICK_SECONDS} s; "
                    "what is wrong does not mend itself"
                )
                return status
            attempt += 1
            seconds = 2**quick_failures
            self._say(f"{_ending(status)}; restart {attempt} in {seconds} s")
            self._sleep(seconds)
            if self._asked_to_stop:
                return status

    def _run_once(self, attempt):
        commands = self._commands(attempt)
        readers = []
        for name, argv, environment in commands:
            child = subprocess.Popen(
                argv,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                # A group of its own: Ctrl-C reaches it through the supervisor alone, once.
                start_new_session=True,
            )
            self._children.append(child)
            prefix = f"[{name}] ".encode() if len(commands) > 1 else b""
            readers.append(threading.Thread(target=self._copy, args=(child.stdout, prefix)))
            readers[-1].start()
        if self._asked_to_stop:  # while they were being started
            self._signal(signal.SIGTERM)
        statuses = self._wait([name for name, *_ in commands])
        for child in self._children:  # what they started and left: it would hold files and ports
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        for reader in readers:
            reader.join()
        self._children = []
        return statuses

    def _wait(self, names):
        """The exit status of the first process that did not end with 0, else 0."""
        first, failed_at = 0, None
        signals = iter((signal.SIGTERM, signal.SIGKILL))
        running = dict(zip(names, self._children, strict=True))
        while running:
            time.sleep(0.1)
            for name, child in list(running.items()):
                if child.poll() is None:
                    continue
                del running[name]
                if child.returncode and not first:
                    first, failed_at = child.returncode, time.monotonic()
                    if running and not self._asked_to_stop:
                        self._say(f"process {name} {_ending(first)}; waiting for the others")
            if failed_at is not None and time.monotonic() - failed_at > self._grace:
                number, failed_at = next(signals, signal.SIGKILL), time.monotonic()
                self._say(f"process {', '.join(running)} still runs: {number.name}")
                self._signal(number)
        return 128 - first if first < 0 else first

    def _stop(self, *_):
        self._asked_to_stop = True
        self._signal(signal.SIGTERM)

    def _signal(self, number):
        for child in self._children:
            if child.poll() is None:
                child.send_signal(number)

    def _sleep(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._asked_to_stop:
            time.sleep(0.1)

    def _copy(self, stream, prefix):
        for line in stream:
            self._write(prefix + line)

    def _say(self, text):
        self._write(f"supervisor: {text}\n".encode())

    def _write(self, line):
        with self._writing:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            if self._log:
                with open(self._log, "ab") as log:
                    log.write(line)


def _ending(status):
    if status == STOPPED:
        return "was stopped before its end"
    if status < 0 or status > 128:
        number = -status if status < 0 else status - 128
        if number in signal.Signals.__members__.values():
            return f"was killed by {signal.Signals(number).name}"
    return f"failed with exit status {status}"


def parser(description):
    """The arguments that every launcher of supervised processes has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--restarts", type=int, default=1000, help="at most so many; default 1000")
    made.add_argument("--log", help="file that all output is appended to")
    made.add_argument(
        "--grace",
        type=float,
        default=150,
        help="seconds in which the others end by themselves when one has failed; default 150",
    )
    made.add_argument("--dry-run", action="store_true", help="print the commands; run nothing")
    made.add_argument("command", nargs="+", help="after --, what to run")
    return made


def main():
    """Supervises one command."""
    args = parser(__doc__).parse_args()
    if args.dry_run:
        print(shlex.join(args.command))
        return
    supervisor = Supervisor(
        lambda attempt: [("0", args.command, None)],
        restarts=args.restarts,
        grace=args.grace,
        log=args.log,
    )
    sys.exit(supervisor.run())


if __name__ == "__main__":
    main()
