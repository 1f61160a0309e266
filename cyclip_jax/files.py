"""Paths that may be remote, files that are written whole or not at all, and files that grow."""

import contextlib
import errno
import fnmatch
import hashlib
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

from cyclip_jax.errors import UserError

# No space, no quota, or a file larger than a limit: what a person can mend while a run goes on.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNFINISHED = r"(\.\d+){1,2}\.tmp"  # how `unfinished_path` ends; earlier code gave one number
_BLOCK = 16 << 20  # bytes of a file that are hashed at a time


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """The path as an epath.Path; a local one is made absolute, as Orbax wants it, and ~ is home."""
    path = str(path)
    return epath.Path(path if "://" in path else os.path.abspath(os.path.expanduser(path)))


def entries(folder: str | os.PathLike[str]) -> list[epath.Path]:
    """What a folder holds, sorted; nothing where there is no folder.

    A glob would take brackets in the folder's own path for a pattern.
    """
    folder = epath.Path(folder)
    return sorted(folder.iterdir()) if folder.is_dir() else []


def check_literal(path: str | os.PathLike[str], name: str) -> None:
    """Raises UserError where Orbax, which takes a path for a pattern, would not find it.

    Args:
      path: where checkpoints are to be written.
      name: what says so, for the message ("--workdir").
    """
    for part in str(path).split("/"):
        if not fnmatch.fnmatchcase(part, part):
            better = re.sub(r"[\[\]]", "", part)
            raise UserError(
                f"{name} is {path}, and checkpoints cannot be found again in a folder whose name "
                f"has brackets, as {part} has; choose a name without them, such as {better}"
            )


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Writes bytes or text; `path` holds what it held before or all of `content`, never a part."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = unfinished_path(path)
    try:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def unfinished_path(path: epath.Path) -> epath.Path:
    """Where a file is written before it gets its name.

    It is of this thread alone: two that write one file at a time must not share what is unfinished.
    """
    return path.parent / f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp"


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Removes from a folder the files of processes that were killed in `write_atomically`."""
    for path in entries(folder):
        if re.search(f"{UNFINISHED}$", path.name):
            path.unlink(missing_ok=True)


class Appender:
    """A text file that grows; what a full disk does not take waits in memory for the next try.

    Attributes:
      failure: the error that keeps the end of the text from being written, or None.
      unwritten: the end of the text that is not written yet, as bytes.
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
        """Appends text, or keeps it in memory and says so once."""
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
                        "in memory until they can be written.",
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


def file_errors() -> tuple[type[Exception], ...]:
    """The types that reading or writing a file may raise: OSError, and TensorFlow's own errors.

    Remote files raise the latter. Nothing can have raised them before TensorFlow is imported.
    """
    tensorflow = sys.modules.get("tensorflow")
    return (OSError,) if tensorflow is None else (OSError, tensorflow.errors.OpError)


def is_missing(error: Exception) -> bool:
    """Whether an error of `file_errors` says that there is no such file."""
    is_named_so = any(kind.__name__ == "NotFoundError" for kind in type(error).__mro__)
    return isinstance(error, FileNotFoundError) or is_named_so


def sha256_of(path: epath.Path) -> str:
    """The SHA-256 of a file, local or remote, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:  # not hashlib.file_digest, which takes no remote file
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes JSON atomically; a number that is not finite becomes null, as strict readers want."""
    text = json.dumps(_strict(content), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")


def _strict(content):
    if isinstance(content, dict):
        return {key: _strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_strict(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
