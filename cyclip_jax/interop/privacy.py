"""What of a person's machine must not be published with a model: folders, accounts, the token."""

import contextlib
import getpass
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cyclip_jax.errors import UserError

_BLOCK = 1 << 20  # bytes of a file that are searched at a time
_SOMEBODY = "user"  # stands where a login name stood
# Where a path may begin: at the beginning, behind what no name of a file or folder ends in, or
# behind a + that stands behind such a name, other than that of the pattern ".+/kernel".
_BEFORE = r"""(?:(?<![^\s"'`=:,;|&(\[{<>@])|(?<=[\w)\]}]\+))"""
# What parts the paths of a list, or a path from the sentence that it stands in. A folder may have
# blanks in its name, the last part has none.
_PART = r"""[^/\\\s"'`,;+|<>]+"""
_FOLDERS = rf"(?:(?:{_PART}(?:[ ]+{_PART})*)?[/\\]+)*"
_PATH = re.compile(
    rf"""{_BEFORE}(?:
        (?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://  # gs://bucket/…, and also file:///…
        | /(?=[^/\s])                           # /home/…
        | \\\\                                  # \\server\…
        | ~[\w.-]*[/\\]                         # ~/…, ~name/…
        | \.\.?[/\\]                           # ./…, ../…
        | [A-Za-z]:[/\\]+                       # C:\…
    ){_FOLDERS}(?:{_PART})?""",
    re.VERBOSE,
)
_HOMES = ("home", "users")  # folders of all people's


def without_folders(value: Any) -> Any:
    """Settings in which each path is its last name alone, and no login name stands in that.

    Args:
      value: what JSON can hold, tuples besides. Paths may stand anywhere in a text, several of them
        with blanks, commas or + between them; local ones, ~/…, those of Windows, and remote ones.
    """
    if isinstance(value, Mapping):
        return {without_folders(name): without_folders(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(inner) for inner in value]
    return _PATH.sub(_last_name, value) if isinstance(value, str) else value


def _last_name(path):
    """The last name of a path that was found in a text."""
    scheme = path["scheme"]
    whole = path[0] if scheme is None else path[0].removeprefix(f"{scheme}://")
    *folders, last = re.split(r"[/\\]+", whole.rstrip("/\\"))
    is_bucket = scheme not in (None, "file") and not folders
    if is_bucket or (folders and folders[-1].lower() in _HOMES):
        return _SOMEBODY
    for name in _logins():
        last = re.sub(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", _SOMEBODY, last)
    return last


def _logins() -> list[str]:
    """The person's login name, and the name of the home folder."""
    names = [os.path.basename(os.path.expanduser("~"))]
    with contextlib.suppress(KeyError, OSError):  # a container has users without a name
        names.append(getpass.getuser())
    return sorted({name for name in names if len(name) > 1})


def check_private(files: Sequence[pathlib.Path], token: str | None) -> None:
    """Raises UserError where a file has the token in it, or a path below the home folder.

    Args:
      files: all that is to be published.
      token: the one of the Hub, or None.
    """
    home = os.path.expanduser("~")
    searched = {} if token is None else {token: "your token"}
    if len(home) > 1:
        searched[f"{home.rstrip('/')}/"] = "a path of your home folder"
    words = {word.encode(): what for word, what in searched.items()}
    for path in files:
        for block in _overlapping(path, max(map(len, words), default=0)):
            for word, what in words.items():
                if word in block:
                    raise UserError(
                        f"{path.name} has {what} in it, so that nothing is sent; remove it there, "
                        "or export again without it"
                    )


def _overlapping(path: pathlib.Path, overlap: int) -> Iterator[bytes]:
    """A file's bytes in blocks, each of which begins with the end of the one before."""
    before = b""
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            yield before + block
            before = (before + block)[-overlap:] if overlap else b""
