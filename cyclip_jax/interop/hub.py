"""Models of the Hugging Face Hub: what is fetched of them, and where it then lies.

A model there is named hf-hub:user/name, or hf-hub:user/name@revision with a branch, a tag or a
commit. Its files go to huggingface_hub's own cache. Nothing is fetched but settings, vocabularies
and safetensors, so that nothing from the Hub is ever unpickled or run.
"""

import contextlib
import functools
import importlib
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from types import ModuleType
from typing import Any

from etils import epath

from cyclip_jax.errors import UserError
from cyclip_jax.files import HUB, absolute, is_on_hub, parse_json
from cyclip_jax.interop.class_head import FILE as HEAD_FILE
from cyclip_jax.interop.folders import (
    DESCRIPTION,
    OPEN_CLIP_CONFIG,
    TRANSFORMERS_CONFIG,
    weights_among,
)
from cyclip_jax.workdir.layout import CLASSES, TOKENIZER

LIMIT = "CYCLIP_JAX_HUB_GB"  # the environment variable that moves the limit
# GB of 1e9 bytes. The largest model in open_clip's table of sizes (docs/model_profile.csv), which
# is EVA02-E-14-plus with 5.04e9 parameters, has 20.2 in float32; ViT-bigG-14 has 10.2.
DEFAULT_LIMIT = 24.0
LOGIN = "log in with `hf auth login`, or set $HF_TOKEN"

_SMALL = frozenset(
    {
        *(DESCRIPTION, OPEN_CLIP_CONFIG, TRANSFORMERS_CONFIG, CLASSES),
        *("preprocessor_config.json", "processor_config.json"),
        *(TOKENIZER, "bpe_simple_vocab_16e6.txt.gz"),
    }
)
_WEIGHTS = re.compile(r"[\w.-]+\.safetensors(\.index\.json)?")
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def parsed(name: str | os.PathLike[str]) -> tuple[str, str | None]:
    """(repository, revision or None) of hf-hub:user/name or hf-hub:user/name@revision.

    Raises:
      UserError: it is written otherwise.
    """
    repository, at, revision = os.fspath(name).removeprefix(HUB).partition("@")
    if not is_repository(repository) or (at and not revision):
        raise UserError(
            f"{os.fspath(name)} must be {HUB}user/name, or {HUB}user/name@revision with a branch, "
            "a tag or a commit"
        )
    return repository, revision or None


def is_repository(text: str) -> bool:
    """Whether a text can be the name of a repository, user/name or organisation/name."""
    parts = text.split("/")
    return _NAME.fullmatch(text) is not None and not any(
        part[0] in "-." or part[-1] in "-." or "--" in part or ".." in part or len(part) > 96
        for part in parts
    )


def located(path: str | os.PathLike[str]) -> epath.Path:
    """Where a model lies: of one on the Hub the folder to which it was fetched, else `absolute`.

    The files of a name are those of one commit as long as the process lives, and the commit is
    said in one line.

    Raises:
      UserError: the model cannot be fetched, has no safetensors, or is larger than the limit.
    """
    if not is_on_hub(path):
        return absolute(path)
    repository, revision = parsed(path)
    return _fetched(repository, _commit(repository, revision))


def pinned(path: str | os.PathLike[str]) -> str:
    """The name of a model on the Hub with the commit that it means now; other paths as they are.

    Raises:
      UserError: there is no such model, or the Hub cannot be asked.
    """
    if not is_on_hub(path):
        return os.fspath(path)
    repository, revision = parsed(path)
    return f"{HUB}{repository}@{_commit(repository, revision)}"


def as_recorded(path: str, recorded: Any, *, goes_on: bool) -> str:
    """The `pinned` name of a model that a run begins from, or that it began from before.

    Args:
      path: what the run is told to begin from.
      recorded: what its config.json says, or None.
      goes_on: whether it has checkpoints, so that it began from what is recorded.

    Returns:
      `recorded`, where it is of the same repository and `path` asks for no other revision of a run
      that begins; else `pinned(path)`.

    Raises:
      UserError: as `pinned`.
    """
    if not is_on_hub(path):
        return path
    repository, revision = parsed(path)
    if recorded is not None and is_on_hub(recorded) and (goes_on or revision is None):
        before, commit = parsed(recorded)
        if before == repository and commit is not None and _COMMIT.fullmatch(commit):
            return os.fspath(recorded)
    return pinned(path)


def require_hub(what: str) -> ModuleType:
    """The module huggingface_hub; raises UserError, which begins with `what`, if there is none."""
    try:
        for module in ("constants", "errors"):  # which it does not import by itself
            importlib.import_module(f"huggingface_hub.{module}")
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UserError(
            f"{what} needs huggingface_hub; run pip install 'cyclip_jax[hub]'"
        ) from error


@functools.cache  # one commit for all that a process does; what raises is not kept
def _commit(repository: str, revision: str | None) -> str:
    """The commit of a branch or a tag, said in one line."""
    named = f"{HUB}{repository}" + (f"@{revision}" if revision else "")
    hub = require_hub(named)
    with _one_sentence(hub, repository, revision):
        commit = hub.HfApi().resolve_revision(repository, revision=revision).resolved
    print(f"{named} is commit {commit}", file=sys.stderr)
    return commit


@functools.cache
def _fetched(repository: str, commit: str) -> epath.Path:
    """The folder of huggingface_hub's cache with what our readers take of a commit."""
    name = f"{HUB}{repository}"
    hub = require_hub(name)

    def snapshot(files: Collection[str]) -> epath.Path:
        _check_size(name, files, sizes)
        patterns = sorted(files)  # names without any character of a pattern
        return epath.Path(
            hub.snapshot_download(repository, revision=commit, allow_patterns=patterns)
        )

    with _one_sentence(hub, repository, commit):
        sizes = _sizes(hub, repository, commit)
        files = _SMALL & sizes.keys()
        chosen = _chosen_weights(name, snapshot(files), sizes)
        if chosen.endswith(".index.json"):
            files |= _shards(name, snapshot([chosen]) / chosen, sizes)
        return snapshot(files | {chosen} | ({HEAD_FILE} & sizes.keys()))


def _sizes(hub, repository: str, commit: str) -> dict[str, int]:
    """{file: bytes} of all files of a commit that our readers may take."""
    try:
        listed = hub.get_cached_repo_tree(repository, revision=commit)
    except hub.errors.CachedRepoTreeNotFoundError:
        listed = hub.HfApi().list_repo_tree(repository, revision=commit)
    return {
        entry.path: entry.size
        for entry in listed
        if hasattr(entry, "size") and (entry.path in _SMALL or _WEIGHTS.fullmatch(entry.path))
    }


def _chosen_weights(name: str, folder: epath.Path, known: Collection[str]) -> str:
    """The file with the weights, or the index of several, chosen as of a folder.

    Args:
      name: of the model, for messages.
      folder: what is fetched already: settings and vocabularies.
      known: the files that may be fetched.
    """
    told = _json(folder / DESCRIPTION)
    tokenizer, named = told.get("tokenizer"), told.get("weights")
    if isinstance(tokenizer, dict) and tokenizer.get("vocabulary") is not None:
        _check_among(name, tokenizer["vocabulary"], _SMALL & set(known))
    if isinstance(named, list) and named:
        _check_among(name, named[0], known)
        return named[0]
    chosen = weights_among([f for f in known if f not in _SMALL and f != HEAD_FILE])
    if chosen is None:
        raise UserError(
            f"{name} has no safetensors of one model, and nothing else is fetched; choose another "
            "repository, or download the file that you trust and name it instead"
        )
    return chosen


def _shards(name: str, index: epath.Path, known: Collection[str]) -> set[str]:
    """The files that an index of weights names."""
    parts = _json(index).get("weight_map")
    shards = list(parts.values()) if isinstance(parts, dict) else []
    for shard in shards:
        _check_among(name, shard, known)
    return set(shards)


def _check_among(name: str, file: Any, known: Collection[str]) -> None:
    """Raises UserError where a fetched file names another that cannot be fetched."""
    if not isinstance(file, str) or file not in known:
        raise UserError(
            f"{name} names its file {str(file)[:100]!r}, which it lacks or which is of a kind that "
            "is not fetched; choose another repository, or download the file that you trust"
        )


def _json(path: epath.Path) -> Mapping[str, Any]:
    """An object from a fetched file, as far as it is one: the readers say what is wrong with it."""
    try:
        content = parse_json(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _check_size(name: str, files: Collection[str], sizes: Mapping[str, int]) -> None:
    """Raises UserError where files are larger than the limit, before any is downloaded."""
    text = os.environ.get(LIMIT, str(DEFAULT_LIMIT))
    try:
        limit = float(text)
    except ValueError as error:
        raise UserError(f"${LIMIT} is {text!r}; set it to a number of gigabytes") from error
    size = sum(sizes[file] for file in files) / 1e9
    if size > limit:
        raise UserError(
            f"{name} has {size:.1f} GB to fetch, more than the limit of {limit:g} GB; set ${LIMIT} "
            "to more if you want that"
        )


@contextlib.contextmanager
def _one_sentence(hub: Any, repository: str, revision: str | None) -> Iterator[None]:
    """A context in which what huggingface_hub raises becomes one sentence with a remedy."""
    errors, name = hub.errors, f"{HUB}{repository}"
    try:
        yield
    except errors.GatedRepoError as error:
        raise UserError(
            f"{name} is gated; ask for access on its page, and {LOGIN}"
        ) from without_token(error)
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{name} has no branch, tag or commit {revision!r}; choose one that its page lists"
        ) from without_token(error)
    except errors.RepositoryNotFoundError as error:
        raise UserError(
            f"there is no repository {repository} that you may read on {endpoint_of(hub)}; check "
            f"the name, and {LOGIN} if it is private"
        ) from without_token(error)
    except (errors.HTTPError, errors.RevisionResolutionError, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(_why_not_fetched(hub, name, error)) from without_token(error)


def _why_not_fetched(hub, name, error):
    if hub.is_offline_mode():
        return (
            f"{name} is not in the cache, and $HF_HUB_OFFLINE keeps it from being fetched; unset "
            "that once"
        )
    if status_of(error) == 401:
        return f"{endpoint_of(hub)} does not know your token; {LOGIN} anew"
    return f"{name} cannot be fetched: {reason_of(error)}; try again"


def endpoint_of(hub: Any) -> str:
    """The address of the Hub, which $HF_ENDPOINT may name."""
    return hub.constants.ENDPOINT


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error, or of the one that it came from."""
    seen: BaseException | None = error
    while seen is not None:
        response = getattr(seen, "response", None)
        if response is not None:
            return response.status_code
        seen = seen.__cause__
    return None


def reason_of(error: BaseException) -> str:
    """What an error says, in one line of bounded length and without a token."""
    line = " ".join(str(error).split()) or type(error).__name__
    return masked(line)[:200]  # a token that was cut would not be found


def masked(text: str) -> str:
    """A text without the token, and without whatever looks like one."""
    from huggingface_hub import get_token

    token = get_token()
    text = text.replace(token, "…") if token else text
    return re.sub(r"\b(hf|api)_[A-Za-z0-9]{8,}", "…", text)


def without_token(error: BaseException) -> BaseException | None:
    """An error as the cause of ours: None where its text has a token, which nothing may show."""
    return error if masked(str(error)) == str(error) else None
