"""Paths that may be remote, files that are written whole or not at all, and files that grow."""

import contextlib
import errno
import io
import json
import logging
import math
import os
import re
import sys
import threading
from typing import Any

from etils import epath

# No space, no quota, or a file larger than a limit: what a person can mend while a run goes on.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """The path as an epath.Path, made absolute where it is local: Orbax wants that; ~ is home."""
    path = str(path)
    return epath.Path(path if "://" in path else os.path.abspath(os.path.expanduser(path)))


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Writes bytes or text so that `path` holds what it held or all of `content`, never a part."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f"{path.name}.{os.getpid()}.tmp"
    try:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Removes what processes that were killed in `write_atomically` left in a folder."""
    for path in epath.Path(folder).glob("*.tmp"):
        if re.search(r"\.\d+\.tmp$", path.name):
            path.unlink(missing_ok=True)


class Appender:
    """A text file that grows; on a full disk its end waits in memory for the next try.

    Attributes:
      failure: what kept the end of the text from being written; None where nothing did.
      unwritten: that end, bytes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = epath.Path(path)
        # Without a buffer, a local file tells how much of a line it could take.
        is_remote = "://" in str(path)
        self._file = self._path.open("ab") if is_remote else io.FileIO(path, "a")
        self._turn = threading.RLock()
        self.failure: Exception | None = None
        self.unwritten: bytes = b""

    def write(self, text: str) -> None:
        """Appends text, or keeps it in memory, which is said once."""
        with self._turn:
            self.unwritten += text.encode()
            self.flush()

    def flush(self) -> None:
        """Tries to write what is not written yet."""
        with self._turn:
            was_failing = self.failure is not None
            try:
                while self.unwritten:
                    count = self._file.write(self.unwritten)  # None from a remote one: all
                    self.unwritten = b"" if count is None else self.unwritten[count:]
                self._file.flush()
                self.failure = None
            except file_errors() as error:
                self.failure = error
                if not was_failing:
                    logging.error(
                        "%s CANNOT BE WRITTEN (%s). Free space or mend that: its next lines wait "
                        "in memory until they can be.",
                        self._path,
                        error,
                    )

    def close(self) -> None:
        """Closes the file; what is still unwritten goes to the log of errors instead."""
        self.flush()
        if self.unwritten:
            logging.error("%s lacks these lines:\n%s", self._path, self.unwritten.decode())
        with contextlib.suppress(*file_errors()):  # said by flush already
            self._file.close()


def file_errors():
    """What reading or writing a file may raise: OSError, and of remote ones TensorFlow's own.

    Where TensorFlow has not been imported, nothing can have raised its errors.
    """
    tensorflow = sys.modules.get("tensorflow")
    return (OSError,) if tensorflow is None else (OSError, tensorflow.errors.OpError)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes JSON so; a number that is not finite becomes null, as strict readers want."""
    text = json.dumps(_strict(content), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")


def _strict(content):
    if isinstance(content, dict):
        return {key: _strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_strict(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
