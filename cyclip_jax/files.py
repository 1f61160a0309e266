"""Paths that may be remote, files that are written whole or not at all, and files that grow."""

import contextlib
import dataclasses
import errno
import fnmatch
import hashlib
import inspect
import io
import json
import logging
import math
import os
import re
import sys
import threading
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeAlias

from etils import epath

from cyclip_jax.errors import UserError
from cyclip_jax.runtime.started import import_tensorflow

# No space, no quota, or a file larger than a limit: what a person can mend while a run goes on.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNFINISHED = r"(\.\d+){1,2}\.tmp"  # how `unfinished_path` ends; earlier code gave one number
_BLOCK = 16 << 20  # bytes of a file that are hashed at a time
HUB = "hf-hub:"  # begins the name of a model that lies on the Hugging Face Hub
_SCHEME = re.compile(r"(?:^|[:=])([A-Za-z][A-Za-z0-9+.-]*)://")  # also in preset:NAME=gs://…
_SCHEMES_OF_EPATH = ("s3", "az", "hf")  # which it opens by itself, where it may not by TensorFlow


def expanded(path: str | os.PathLike[str]) -> str:
    """The path with ~ for the home folder, and of file:///… what it means on this machine."""
    return os.path.expanduser(os.fspath(path).removeprefix("file://"))


def absolute(path: str | os.PathLike[str], name: str = "") -> epath.Path:
    """The path as an epath.Path; a local one is made absolute, as Orbax wants it, and ~ is home.

    Args:
      path: local or remote.
      name: what says so, for messages ("--workdir").

    Raises:
      UserError: nothing here opens paths of its kind, see `check_scheme`.
    """
    path = expanded(path)
    check_scheme(path, name)
    return epath.Path(path if "://" in path else os.path.abspath(path))


def is_on_hub(path: str | os.PathLike[str]) -> bool:
    """Whether a path is the name of a model on the Hugging Face Hub, such as hf-hub:user/name."""
    return os.fspath(path).startswith(HUB)


def from_anywhere(path: str | os.PathLike[str]) -> str:
    """The path that means from any folder what `path` means from this one.

    Only ./ and ../ at its beginning are resolved: within it they may follow links. What is empty,
    remote or on the Hub, or holds {workdir}, has no folder of ours to begin in.
    """
    path = expanded(path)
    if not path or path.startswith(("/", HUB)) or "://" in path or "{workdir}" in path:
        return path
    folder = os.getcwd()
    while path:
        first, _, rest = path.partition("/")
        if first not in ("", ".", ".."):
            break
        folder = os.path.dirname(folder) if first == ".." else folder
        path = rest
    return f"{folder.rstrip('/')}/{path}" if path else folder


@dataclasses.dataclass(frozen=True)
class Located:
    """Marks the type of a setting that names files, folders or data.

    Attributes:
      from_anywhere: function (value, all settings of its section) -> the value that means the same
        from any folder.
      kind: str, or Mapping of a setting that holds others.
    """

    from_anywhere: Callable[[Any, Mapping[str, Any]], Any]
    kind: type = str


def located_in(kind: Any) -> Located | None:
    """The mark of a setting's type, which may be a union with None; None where it has none."""
    marks = [
        mark
        for part in (kind, *typing.get_args(kind))
        for mark in getattr(part, "__metadata__", ())
        if isinstance(mark, Located)
    ]
    return marks[0] if marks else None


def located_from_anywhere(
    constructor: Callable[..., Any], section: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a section with paths that mean the same from any folder.

    Args:
      constructor: its keyword arguments are the section's fields, and their types say which of them
        are paths.
      section: {field: value}; what is no path and no mapping stays as it is.
    """
    marks = {
        name: located_in(parameter.annotation)
        for name, parameter in inspect.signature(constructor).parameters.items()
    }
    found = {}
    for name, value in section.items():
        mark, value = marks.get(name), os.fspath(value) if isinstance(value, os.PathLike) else value
        if mark is not None and isinstance(value, mark.kind):
            value = mark.from_anywhere(value, section)
        found[name] = value
    return found


# The type of a setting that names a file or a folder.
FilePath: TypeAlias = Annotated[str, Located(lambda path, _: from_anywhere(path))]


def unopened_scheme(path: str, *, by_tensorflow: bool = False) -> str | None:
    """The scheme of a path, such as "s3", where nothing here opens it; None where something does.

    Args:
      path: local or remote; a scheme may also follow tfds: or preset:NAME=.
      by_tensorflow: whether the path is opened by TensorFlow, and not by epath.
    """
    scheme = _SCHEME.search(path)
    if scheme is None or scheme[1] in ("file", "gs"):  # TensorFlow always has these
        return None
    if not by_tensorflow and os.environ.get("EPATH_USE_TF", "").lower() in (
        "false",
        "no",
        "f",
        "0",
    ):
        return None if scheme[1] in _SCHEMES_OF_EPATH else scheme[1]
    is_registered = scheme[1] in import_tensorflow().io.gfile.get_registered_schemes()
    return None if is_registered else scheme[1]


def check_scheme(path: str, name: str = "", *, by_tensorflow: bool = False) -> None:
    """Raises UserError where nothing here opens paths of this kind, such as s3://….

    Args:
      path: local or remote.
      name: what says so, for messages ("config.data.train").
      by_tensorflow: as `unopened_scheme` has it.
    """
    scheme = unopened_scheme(path, by_tensorflow=by_tensorflow)
    if scheme is not None:
        raise UserError(
            f"{f'{name} is ' if name else ''}{path}, and nothing here opens {scheme}://; give a "
            "path of this machine or of gs://, and download or mount there what lies elsewhere"
        )


def check_located(config_key: str, value: Any, kind: Any) -> None:
    """Raises UserError where a setting is of a type that names a path, which nothing here opens."""
    if isinstance(value, str) and located_in(kind):
        check_scheme(value, config_key)


# {what is odd about how a path is written: function that writes it as usual}.
_USUAL: dict[str, Callable[[str], str]] = {
    "it has backslashes, and / stands between folders": lambda path: path.replace("\\", "/"),
    "it has blanks around a name": lambda path: "/".join(map(str.strip, path.split("/"))),
    "~ stands for the home folder only in flags and settings": lambda path: os.path.expanduser(
        re.sub(r"^.*/~/", "~/", path)
    ),
}


def miswritten(path: str) -> tuple[str, str | None] | None:
    """What is odd about how a path is written that leads nowhere.

    Returns:
      (what, half a sentence; the path that is there in the usual writing, or None). None where
      nothing is odd, or the path is there.
    """
    tidy, faults = path, []
    for fault, usual in _USUAL.items():
        if usual(tidy) != tidy:
            tidy = usual(tidy)
            faults.append(fault)
    if not faults or _is_there(path):
        return None
    return " and ".join(faults), tidy if _is_there(tidy) else None


def _is_there(path):  # of remote ones it is not asked: that takes time
    return "://" not in path and os.path.exists(path)


def how_written(path: str | os.PathLike[str]) -> str:
    """What to add to a message on a missing path: what is odd about how it is written, or ""."""
    found = miswritten(os.fspath(path))
    if found is None:
        return ""
    fault, other = found
    return f" ({fault}; there is {other})" if other else f" ({fault})"


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


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a small file; raises UserError where it cannot be read or is no UTF-8."""
    try:
        return epath.Path(path).read_text(encoding="utf-8")
    except (UnicodeDecodeError, *file_errors()) as error:
        raise UserError(f"{path} cannot be read as text in UTF-8: {error}") from error


def parse_json(text: str | bytes) -> Any:
    """The content of JSON that somebody else may have written; raises ValueError for any fault."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its lists and objects are nested too deep") from error


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
