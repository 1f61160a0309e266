"""Commands as a person sees them: in a terminal, which Python's pty stands for."""

import errno
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

from tests.runs import ROOT


class Terminal:
    """`python -m cyclip_jax.<arguments>`, in a terminal of its own.

    Args:
      environment: its variables.
      arguments: the module's name and its flags.
    """

    def __init__(self, environment, *arguments):
        module, *flags = arguments
        command = [sys.executable, "-m", f"cyclip_jax.{module}", *flags]
        self._file, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""

    def press_ctrl_c(self):
        """Does what a terminal does: it sends SIGINT to the command and to its children."""
        os.killpg(self._process.pid, signal.SIGINT)

    def wait_for(self, text, seconds=120):
        """Returns once the terminal shows a text."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline and self._read(), self.shown

    def end(self, seconds=120):
        """The exit status, once the process has ended and everything is shown."""
        deadline = time.monotonic() + seconds
        while self._read():
            assert time.monotonic() < deadline, self.shown
        os.close(self._file)
        return self._process.wait(seconds)

    def lines(self):
        """What was shown, in lines, without empty ones."""
        lines = self.shown.replace("\r", "\n").split("\n")
        return [line.strip() for line in lines if line.strip()]

    def _read(self):
        """Reads what comes within a second; False at the end."""
        if not select.select([self._file], [], [], 1)[0]:
            return True
        try:
            data = os.read(self._file, 65536)
        except OSError as error:  # which is how Linux says that nobody writes any more
            assert error.errno == errno.EIO
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)
