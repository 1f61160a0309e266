"""The folder of a command that may be killed at any moment and given again."""

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from cyclip_jax.data.sources.ranges import is_remote
from cyclip_jax.errors import UserError
from cyclip_jax.files import parse_json

# What settings are called in a message whose names are no flags.
_TITLES = {"examples": "the number of input examples", "version": "the format's version"}


@contextlib.contextmanager
def claimed(folder: epath.Path) -> Iterator[None]:
    """Makes a folder, and keeps other processes from it where the file system has locks.

    Raises:
      UserError: another process is writing into it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if is_remote(os.fspath(folder)):
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor, folder):
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"another process is writing into {folder}; let it finish, or stop it"
        ) from error
    except OSError as error:
        logging.info("%s cannot be locked: %s", folder, error)  # some network file systems


def check_settings(path: epath.Path, wanted: Mapping[str, Any]) -> None:
    """Raises UserError where a folder was begun with other settings.

    Args:
      path: the file in which it has them.
      wanted: those of this call, as JSON gives them back.
    """
    folder = path.parent
    try:
        found = dict(parse_json(path.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} was not written by this command; set --output to a folder of its own"
        ) from error
    differing = [
        f"{_TITLES.get(name, f'--{name}')} was {found.get(name)!r} and is {value!r}"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if differing:
        raise UserError(
            f"{folder} was begun with other settings: {'; '.join(differing)}; "
            "repeat the earlier command, or set --output to another folder"
        )


def cores() -> int:
    """How many cores this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
