"""What the processes of a run agree on, and in which order they do it."""

import hashlib
import json
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from cyclip_jax.errors import UserError

_Made = TypeVar("_Made")


def process_zero_first(make: Callable[[], _Made]) -> _Made:
    """Calls `make` on process 0, then on all others: what it writes is written once.

    Raises:
      UserError: on the others, where process 0 failed: none is left waiting.
    """
    failure: Exception | None = None
    made: list[_Made] = []
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


def wait_for_all_processes():
    """Returns once every process has come here, however long one takes to compile.

    Gloo, which CPUs use, gives up when the first collective of some devices finds not all of them
    there within 30 s; those that it knows may wait for each other for as long as they like.
    """
    if jax.process_count() > 1:
        multihost_utils.process_allgather(np.zeros(1))


def check_same_everywhere(settings):
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


def decided_by_process_zero(decide):
    """An integer or None that `decide`, called on process 0 alone, gives; the same on all.

    Raises:
      UserError: on the others, where it failed on process 0.
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
