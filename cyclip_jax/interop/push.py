"""Sends an export to the Hugging Face Hub: the files that it describes as its own, no others."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

from cyclip_jax import __version__
from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute, parse_json
from cyclip_jax.interop.folders import DESCRIPTION
from cyclip_jax.interop.hub import (
    LOGIN,
    endpoint_of,
    is_repository,
    reason_of,
    require_hub,
    status_of,
    without_token,
)
from cyclip_jax.interop.privacy import check_private

_ITS_OWN = {".gitattributes"}  # what the Hub puts into every repository


def check_push(repository: str, output: str | os.PathLike[str]) -> None:
    """Raises UserError where an export could not be sent, without asking the Hub.

    Args:
      repository: user/name, or organisation/name.
      output: the directory of the export.
    """
    if not is_repository(repository):
        raise UserError(
            f"--push={repository} must be user/name or organisation/name, of letters, digits, "
            "'-', '_' and '.'"
        )
    if "://" in str(absolute(output, "--output")):
        raise UserError(f"--push sends files of this machine, not of {output}; choose a local one")
    hub = require_hub("--push")
    if hub.is_offline_mode():
        raise UserError("--push needs the network, which $HF_HUB_OFFLINE forbids; unset that")
    if hub.get_token() is None:
        raise UserError(f"--push needs a token of {endpoint_of(hub)} that may write; {LOGIN}")


def push(
    folder: str | os.PathLike[str],
    repository: str,
    *,
    is_public: bool = False,
    say: Callable[[str], object] = print,
) -> str:
    """Sends an export as one commit.

    What is sent is told first, with its sizes. The token is that of huggingface_hub's own login.

    Args:
      folder: the export, on this machine.
      repository: the name of the repository, which is created if there is none.
      is_public: whether a new one is public. One that is there keeps its visibility.
      say: takes lines for a person.

    Returns:
      The commit.

    Raises:
      UserError: a file has something private in it, or the Hub cannot be reached or refuses. The
        export stays where it is.
    """
    hub = require_hub("--push")
    folder = pathlib.Path(absolute(folder, "--output"))
    told = parse_json((folder / DESCRIPTION).read_text())
    files = {name: folder / name for name in told["files"]}
    check_private(list(files.values()), hub.get_token())
    say(f"sending to {repository}:")
    for name, path in files.items():
        say(f"  {name}  {_size(path.stat().st_size)}")
    try:
        return _sent(hub, files, repository, is_public, _message(told), say)
    except (hub.errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{_why_not_sent(hub, repository, error)}; the export is in {folder}, and the same "
            "command sends it once that is mended"
        ) from without_token(error)


def _message(told):
    step = "" if told["step"] is None else f" of step {told['step']}"
    return f"The {told['format']} export{step} by cyclip_jax {__version__}"


def _sent(hub: Any, files, repository, is_public, message, say) -> str:
    api = hub.HfApi(library_name="cyclip_jax", library_version=__version__)
    try:
        is_private, is_new = api.model_info(repository).private, False
    except hub.errors.RepositoryNotFoundError:
        api.create_repo(repository, private=not is_public)
        is_private, is_new = not is_public, True
    visibility = "private" if is_private else "public"
    if is_new:
        say(f"{repository} is new, and {visibility}")
    else:
        say(f"{repository} is {visibility}, and stays so; its page has a setting for that")
    operations = [hub.CommitOperationAdd(name, str(path)) for name, path in files.items()]
    commit = api.create_commit(repository, operations, commit_message=message)
    others = set(api.list_repo_files(repository, revision=commit.oid)) - {*files, *_ITS_OWN}
    if others:
        say(f"{repository} also has {_listed(others)}, which this export neither needs nor changes")
    say(f"sent as commit {commit.oid}: {endpoint_of(hub)}/{repository}")
    return commit.oid


def _listed(names):
    first = sorted(names)
    return ", ".join(first[:5]) + (f" and {len(first) - 5} others" if len(first) > 5 else "")


def _why_not_sent(hub, repository, error) -> str:
    status, endpoint = status_of(error), endpoint_of(hub)
    if status == 401:
        return f"{endpoint} does not know your token, so that nothing was sent; {LOGIN} anew"
    if status == 403:
        return (
            f"your token may not write to {repository}, so that nothing was sent: use a token that "
            "may, or the name of a repository of yours"
        )
    if status is not None:
        return f"{endpoint} refuses the export: {reason_of(error)}"
    return f"{endpoint} cannot be reached or has broken off: {reason_of(error)}"


def _size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
