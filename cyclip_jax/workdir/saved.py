"""Which checkpoints a workdir has and what they say of themselves, read without Orbax."""

import os
from typing import Any

from etils import epath

from cyclip_jax.errors import UserError
from cyclip_jax.files import entries, file_errors, parse_json
from cyclip_jax.workdir.layout import CHECKPOINTS


def saved_steps(workdir: str | os.PathLike[str]) -> list[int]:
    """The steps of the checkpoints that are written, in their order."""
    folder = epath.Path(workdir) / CHECKPOINTS
    return sorted(int(path.name) for path in entries(folder) if path.name.isdecimal())


def read_meta(workdir: str | os.PathLike[str], step: int) -> dict[str, Any]:
    """What the checkpoint of a step says of itself: the data position, the config and the like.

    Raises:
      UserError: it is not what it should be.
    """
    path = epath.Path(workdir) / CHECKPOINTS / str(step) / "meta" / "metadata"
    try:
        content = parse_json(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("config", {}), dict):
        raise UserError(f"{path} is not what a checkpoint says of itself; choose another step")
    return content


def newest_meta(workdir: str | os.PathLike[str]) -> tuple[int, dict[str, Any]] | None:
    """(step, meta) of the newest checkpoint; None where there is none, or it cannot be read."""
    steps = saved_steps(workdir)
    try:
        return (steps[-1], read_meta(workdir, steps[-1])) if steps else None
    except (ValueError, *file_errors()):  # a damaged one is set aside when restored
        return None
