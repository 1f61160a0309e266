"""Paths that may be remote, and files that are written whole or not at all."""

import os

from etils import epath


def absolute(path):
    """The path as an epath.Path, made absolute where it is local: Orbax wants that; ~ is home."""
    path = str(path)
    return epath.Path(path if "://" in path else os.path.abspath(os.path.expanduser(path)))


def write_atomically(path, content):
    """Writes bytes or text so that `path` holds what it held or all of `content`, never a part."""
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f"{path.name}.{os.getpid()}.tmp"
    try:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
