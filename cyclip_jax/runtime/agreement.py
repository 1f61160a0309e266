"""What the processes of a run agree on, and in which order they do it."""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from cyclip_jax.errors import UserError

_Made = TypeVar("_Made")


def process_zero_first(make: Callable[[], _Made]) -> _Made:
    """Calls `make` on process 0, then on all others, so that files are written once.

    Args:
      make: function without arguments.

    Returns:
      What `make` returned in this process.

    Raises:
      UserError: process 0 failed. It is raised on the others, so that none is left waiting.
    """
    made: list[_Made] = []
    failure = None
    is_first = jax.process_index() == 0
    if is_first:
        try:
            made.append(make())
        except Exception as error:
            failure = error
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.asarray(failure is not None))
        if failed and not is_first:
            raise UserError("process 0 cannot go on, and says why")
    if failure is not None:
        raise failure
    return made[0] if is_first else make()


def wait_for_all_processes() -> None:
    """Returns once every process has come here, however long one takes to compile.

    Gloo, which CPUs use, gives up if not all devices of their first collective are there within
    30 s. Devices that have met before may wait for each other for any time.
    """
    if jax.process_count() > 1:
        multihost_utils.process_allgather(np.zeros(1))


def of_process_zero(text: str) -> str:
    """The text that process 0 has, on all processes."""
    if jax.process_count() == 1:
        return text
    own = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.asarray(own.size)))
    padded = np.zeros(size, np.uint8)
    padded[: own.size] = own[:size]
    return np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8).tobytes().decode()


def check_same_everywhere(settings: Mapping[str, Any]) -> None:
    """Raises UserError on all processes where one was started with other settings than process 0.

    Args:
      settings: {name: value} that JSON can write.
    """
    if jax.process_count() == 1:
        return
    text = np.frombuffer(json.dumps(settings, sort_keys=True).encode(), np.uint8)
    digests = multihost_utils.process_allgather(
        np.frombuffer(hashlib.sha256(text.tobytes()).digest(), np.uint8)
    )
    others = [index for index, digest in enumerate(digests) if (digest != digests[0]).any()]
    if not others:
        return
    sizes = multihost_utils.process_allgather(np.asarray(text.size))
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: text.size] = text
    first = multihost_utils.broadcast_one_to_all(padded)[: sizes[0]]
    first = json.loads(np.asarray(first, np.uint8).tobytes())
    if jax.process_index() not in others:
        names = ", ".join(map(str, others))
        raise UserError(f"process {names} has another config than process 0, and says where")
    here = json.loads(text.tobytes())
    differing = [
        f"{name} is {here.get(name)!r} here and {first.get(name)!r} in process 0"
        for name in sorted(here.keys() | first.keys())
        if here.get(name) != first.get(name)
    ]
    raise UserError(f"{'; '.join(differing)}: start all processes with the same config")


def decided_by_process_zero(decide: Callable[[], int | None]) -> int | None:
    """Calls `decide` on process 0 alone, and returns its result on all processes.

    Args:
      decide: function without arguments that returns an integer of at least 0, or None.

    Raises:
      UserError: `decide` failed on process 0. It is raised on the others.
    """
    none, failed = -1, -2
    if jax.process_count() == 1:
        return decide()
    decision = failed
    try:
        if jax.process_index() == 0:
            decision = decide()
    finally:
        told = none if decision is None else decision
        told = int(multihost_utils.broadcast_one_to_all(np.asarray(told)))
    if told == failed:
        raise UserError("process 0 cannot go on, and says why")
    return None if told == none else told
