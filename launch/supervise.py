"""Runs a command until it has finished its work, and starts it again after a crash.

    python launch/supervise.py [--restarts=N] [--log=FILE] -- python -m cyclip_jax.main …

The command must continue where it was, as a run with a workdir does. It is started again when it
fails, when it is killed, and when something else stopped it before its end, for example a machine's
maintenance (exit status 75; see --stopped_exit_code of cyclip_jax.main).

It is not started again when it has finished (exit status 0), when it failed quickly three times in
a row (what is wrong will not mend itself), and when no restart is left. When the supervisor itself
gets SIGTERM or Ctrl-C, it hands the signal on, the command saves, and the supervisor ends with the
command's exit status.

This file needs only Python.
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

STOPPED = 75  # sysexits.h calls it EX_TEMPFAIL: the same command can continue
QUICK_SECONDS, QUICK_FAILURES = 60, 3


class Supervisor:
    """Runs processes that work together, and starts all of them again when one has failed.

    Args:
      commands: a function from the attempt, counted from 0, to a list of (name, argv, environment).
        If there are several processes, the name stands before each line of their output.
      restarts: how often the processes are started again at most.
      grace: how many seconds the other processes have to end by themselves after one has failed.
      log: a file to which the output is appended, or None.
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
                self._say(f"the command {_ending(status)}; no restart is left of {self._restarts}")
                return status
            if quick_failures == QUICK_FAILURES:
                self._say(
                    f"the command {_ending(status)}, {QUICK_FAILURES} times in a row within "
                    f"{QUICK_SECONDS} s; correct what its output tells, and start it again"
                )
                return status
            attempt += 1
            seconds = 2**quick_failures
            self._say(f"the command {_ending(status)}; restart {attempt} follows in {seconds} s")
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
                # In a group of its own it gets Ctrl-C only once, from the supervisor.
                start_new_session=True,
            )
            self._children.append(child)
            prefix = f"[{name}] ".encode() if len(commands) > 1 else b""
            readers.append(threading.Thread(target=self._copy, args=(child.stdout, prefix)))
            readers[-1].start()
        if self._asked_to_stop:  # the signal came while the processes were being started
            self._signal(signal.SIGTERM)
        statuses = self._wait([name for name, *_ in commands])
        for child in self._children:  # what it started and left would hold files and ports
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        for reader in readers:
            reader.join()
        self._children = []
        return statuses

    def _wait(self, names):
        """Returns the exit status of the first process that did not end with 0, else 0."""
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
                self._say(f"process {', '.join(running)} still runs and gets {number.name}")
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
    """Makes a parser with the arguments that every launcher of supervised processes has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--restarts",
        type=int,
        default=1000,
        help="how often the command is started again at most (default 1000)",
    )
    made.add_argument("--log", type=os.path.expanduser, help="file to which all output is appended")
    made.add_argument(
        "--grace",
        type=float,
        default=150,
        help="seconds that the other processes have to end by themselves after one has failed "
        "(default 150)",
    )
    made.add_argument("--dry-run", action="store_true", help="print the commands, and run nothing")
    made.add_argument("command", nargs="+", help="the command to run; it follows --")
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
