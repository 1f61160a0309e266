"""Reads byte ranges of many files, local or remote; tries again where that may help."""

import collections
import concurrent.futures
import errno
import glob
import math
import os
import re
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar, TypeVarTuple

import braceexpand

from cyclip_jax.data.mistaken import GIT_LFS
from cyclip_jax.data.record import Unreadable
from cyclip_jax.errors import UserError
from cyclip_jax.files import file_errors, how_written, is_missing, miswritten, unopened_scheme
from cyclip_jax.runtime.started import import_tensorflow

# Seconds before a failed read is tried again: half a minute in all, as storage services advise.
RETRY_AFTER = (0.1, 0.5, 2.0, 8.0, 20.0)

# What may pass, of TensorFlow's errors by their names: a service that is busy or slow, a network
# that is gone for a moment.
_MAY_PASS = {
    "AbortedError",
    "DeadlineExceededError",
    "InternalError",
    "ResourceExhaustedError",
    "UnavailableError",
    "UnknownError",
}
# What will not pass, of the system's errors: the path or the file itself is at fault.
_WILL_NOT_PASS = {
    errno.EACCES,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENODEV,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENXIO,
    errno.EOPNOTSUPP,
    errno.EPERM,
}
_STANDS_ALONE = re.compile(r"/|[A-Za-z][A-Za-z0-9+.-]*://")
# A picture within a text, as data:image/png;base64,….
DATA_URI: re.Pattern[str] = re.compile(r"data:[\w.+-]*/?[\w.+-]*(;[\w.=+-]*)*,", re.IGNORECASE)
_LONGEST_DETAIL = 300  # characters; a path may be a whole picture

INDEX_ENDING = ".index.npz"  # of the files beside shards that no pattern means

READERS = 32  # questions to a storage service at a time
OPEN_FILES = 256  # at a time: systems allow a process a thousand or so
BLOCK = 1 << 20  # bytes that are read at once where neighbours are kept

MOST_FILES = 1_000_000  # that braces may name: they are looked for one by one
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.-?\d+)?\}")

_Arguments = TypeVarTuple("_Arguments")
_Value = TypeVar("_Value")


def is_remote(path: str) -> bool:
    """Whether a path names a service (gs://…) and not a file of this machine."""
    return "://" in path and not path.startswith("file://")


def expand(pattern: str, *, config_key: str, endings: Sequence[str]) -> list[str]:
    """The files that a pattern names.

    Args:
      pattern: a path, with brace ranges ({00000..00331}, {a,b}) and globs (*, ?, [0-9]), or a
        folder.
      config_key: full name of the config key that holds the pattern, for messages.
      endings: endings of the files that are wanted in a folder, e.g. (".tar",).

    Returns:
      Their paths in the order of the braces, sorted within each glob.

    Raises:
      UserError: there is no such file, or one that the braces name is missing.
    """
    named = [pattern] if _gfile().exists(pattern) else _expand_braces(pattern, config_key)
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:  # remote answers take their time
        found = list(pool.map(lambda path: _files_at(path, endings), named))
    missing = [path for path, files in zip(named, found, strict=True) if files is None]
    paths = [path for files in found for path in files or ()]
    if missing:
        named = (
            ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "") + how_written(missing[0])
        )
        raise UserError(f"{len(missing)} of the files that {config_key} names are missing: {named}")
    if not paths:
        raise UserError(
            f"no file matches {pattern}{how_written(pattern)}; set {config_key} to files that exist"
        )
    return paths


def retrying(read: Callable[[*_Arguments], _Value], *arguments: *_Arguments) -> _Value:
    """Calls read(*arguments), and again with growing pauses where a failure may pass.

    Args:
      read: function that reads a file.
      *arguments: its arguments.

    Raises:
      Unreadable: the file is missing, or cannot be read however often it is tried.
    """
    pauses = iter(RETRY_AFTER)
    while True:
        try:
            return read(*arguments)
        except file_errors() as error:
            pause = next(pauses, None) if _may_pass(error) else None
            if pause is None:
                reason = "the file is missing" if is_missing(error) else "the file cannot be read"
                raise Unreadable(reason, _message(error)) from error
        time.sleep(pause)


def read_whole(path: str) -> bytes:
    """The bytes of a file; raises Unreadable."""
    if DATA_URI.match(path):
        raise Unreadable("the picture is a data: URI; pictures have to be files", _cut(path))
    if scheme := unopened_scheme(path, by_tensorflow=True):
        reason = f"the picture is at {scheme}://, which nothing here opens; download the pictures"
        raise Unreadable(reason, _cut(path))
    try:
        content = retrying(_read_whole, path)
    except Unreadable as error:
        raise _explained(error, path) from error.__cause__
    if content.startswith(GIT_LFS):
        raise Unreadable("the file is a pointer of Git LFS; run git lfs pull", path)
    return content


def stands_alone(path: str) -> bool:
    """Whether the path of a picture in a table is none that begins in the table's folder."""
    return bool(_STANDS_ALONE.match(path) or DATA_URI.match(path))


def _explained(error, path):
    """An Unreadable of a file that says how its path is written, where that may be why."""
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno == errno.ENAMETOOLONG:
        return Unreadable(
            "the path is longer than one can be; pictures have to be files", _cut(path)
        )
    found = miswritten(path) if is_missing(cause) else None
    if found is None:
        return error
    fault, other = found
    detail = f"{path}; there is {other}" if other else path
    return Unreadable(f"the file is missing: its path is odd, as {fault}", detail)


class Files:
    """Reads ranges of bytes of many files; many threads may use it.

    Args:
      paths: the files.
      kept_bytes: how many of the bytes read lately are kept, in blocks of BLOCK bytes. With 0
        nothing is kept, and nothing is read but what is asked for.
    """

    def __init__(self, paths: list[str], kept_bytes: int = 0) -> None:
        self.paths: list[str] = paths
        self._handles = collections.OrderedDict()
        self._lock = threading.Lock()
        self._blocks = Kept(max(1, -(-kept_bytes // BLOCK))) if kept_bytes else None

    def read(self, file: int, start: int, length: int) -> bytes:
        """`length` bytes from `start` of the file number `file`; raises Unreadable."""
        if self._blocks is None:
            content = retrying(self.read_once, file, start, length)
        else:
            content = self._read_blocks(self._blocks, file, start, length)
        if len(content) < length:
            raise Unreadable("the shard is cut short", f"{self.paths[file]} at byte {start}")
        return content

    def _read_blocks(self, kept, file, start, length):
        first, last = start // BLOCK, (start + max(length, 1) - 1) // BLOCK
        blocks = [
            kept.get((file, i), lambda i=i: retrying(self.read_once, file, i * BLOCK, BLOCK))
            for i in range(first, last + 1)
        ]
        offset = start - first * BLOCK
        return b"".join(blocks)[offset : offset + length]

    def read_once(self, file: int, start: int, length: int) -> bytes:
        """At most `length` bytes from `start`, without a second try; raises what the read does."""
        path = self.paths[file]
        if is_remote(path):
            # No handle is kept: TensorFlow's are not for several threads.
            with _gfile().GFile(path, "rb") as opened:
                opened.seek(start)
                return opened.read(length)
        try:
            return os.pread(self._handle(file).fileno(), length, start)
        except OSError:
            self._forget(file)  # a network file system may have lost it
            raise

    def _handle(self, file):
        with self._lock:
            handle = self._handles.pop(file, None)
            if handle is None:
                handle = Handle(self.paths[file])
            self._handles[file] = handle
            if len(self._handles) > OPEN_FILES:
                self._handles.popitem(last=False)  # closed when its last reader is done
            return handle

    def _forget(self, file):
        with self._lock:
            self._handles.pop(file, None)


class Handle:
    """The descriptor of an open file of this machine, closed when nobody refers to it any more."""

    _close = staticmethod(os.close)  # the module's own names are gone when Python ends

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path.removeprefix("file://"), os.O_RDONLY)

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def __del__(self):
        if hasattr(self, "_descriptor"):
            self._close(self._descriptor)


class Kept(Generic[_Value]):
    """Keeps the last `size` values asked for, each computed once for all threads that want it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, compute: Callable[[], _Value]) -> _Value:
        """The value of a key, computed where it is not kept."""
        with self._lock:
            entry = self._values.pop(key, None) or [threading.Lock(), None]
            self._values[key] = entry
            if len(self._values) > self._size:
                self._values.popitem(last=False)
        with entry[0]:
            if entry[1] is None:
                entry[1] = compute()
            return entry[1]


def _expand_braces(pattern, config_key):
    """The paths that the braces of a pattern name; folders that exist as they are have none."""
    ends = _RANGE.findall(pattern)
    is_long = any(len(end) > len(str(MOST_FILES)) + 1 for pair in ends for end in pair)
    if is_long or math.prod(abs(int(a) - int(b)) + 1 for a, b in ends) > MOST_FILES:
        raise UserError(
            f"{config_key} is {pattern}, whose braces name more than {MOST_FILES:,} files; name "
            "those that there are, or their folder"
        )
    folders = pattern.split("/")
    heads = ("/".join(folders[:n]) + "/" for n in range(len(folders) - 1, 0, -1))
    head = next((head for head in heads if "{" in head and _gfile().isdir(head)), "")
    try:
        expanded = braceexpand.braceexpand(pattern.removeprefix(head).replace("\\", "\\\\"))
        return [head + path for path in expanded]
    # The package's own stubs lack its exception.
    except braceexpand.UnbalancedBracesError as error:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError(
            f"{config_key} is {pattern}, in which a brace is not closed; close it"
        ) from error


def _files_at(path, endings):
    """The files that a path without braces names, list[str]; None where there should be one.

    A path that exists is that path before it is a pattern, and so are the folders that one is in.
    """
    if _gfile().isdir(path):
        folder = glob.escape(path.rstrip("/"))
        return [file for ending in endings for file in _glob(f"{folder}/*{ending}")]
    if _gfile().exists(path):
        return [path]
    return _glob(_literal_folders(path)) if glob.has_magic(path) else None


def _literal_folders(pattern):
    """A pattern of which the folders that exist as they are written are not one."""
    folder, slash, last = pattern.rpartition("/")
    if not glob.has_magic(folder):
        return pattern
    if _gfile().isdir(folder):
        return f"{glob.escape(folder)}/{last}"
    return f"{_literal_folders(folder)}{slash}{last}"


def _glob(pattern):
    return sorted(path for path in _gfile().glob(pattern) if not path.endswith(INDEX_ENDING))


def _read_whole(path: str) -> bytes:
    if is_remote(path):
        with _gfile().GFile(path, "rb") as file:
            return file.read()
    with open(path.removeprefix("file://"), "rb") as file:
        return file.read()


def _gfile():
    """TensorFlow's files, which may be remote."""
    return import_tensorflow().io.gfile


def _may_pass(error):
    is_of_the_system = isinstance(error, OSError) and error.errno not in _WILL_NOT_PASS
    # By name, as TensorFlow may not be imported.
    return is_of_the_system or any(kind.__name__ in _MAY_PASS for kind in type(error).__mro__)


def _message(error):
    """What an error says, without the name that TensorFlow gave the operation."""
    lines = (getattr(error, "message", None) or str(error)).strip().splitlines()
    return _cut(lines[0].split("}}")[-1].strip() if lines else type(error).__name__)


def _cut(text):
    return text[:_LONGEST_DETAIL] + "…" if len(text) > _LONGEST_DETAIL else text
