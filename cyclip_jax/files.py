"""Paths that may be remote, and files that are written whole or not at all."""

import json
import math
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


def write_json(path, content):
    """Writes JSON so; a number that is not finite becomes null, as strict readers want."""
    text = json.dumps(_strict(content), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, text + "\n")


def _strict(content):
    if isinstance(content, dict):
        return {key: _strict(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_strict(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
