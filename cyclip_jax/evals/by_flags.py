"""Evaluations that a command line names by their data alone, with the defaults of all settings."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cyclip_jax.data.places import PRESET, TFDS, cut_split
from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.known import PRESETS
from cyclip_jax.evals.data.labelled import SPLITS
from cyclip_jax.files import absolute, read_text

# {flag, which is the evaluator's name: the setting that its data are}.
FLAGS = {"zeroshot": "folder", "retrieval": "pairs", "sts": "sentences"}
_TASK = "dataset_type.txt"  # of CLIP_benchmark's data sets
_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".parquet", ".tar", ".tfrecord", ".npz")


def evaluations_of(
    given: Mapping[str, Iterable[str]], *, taken: Iterable[str] = ()
) -> dict[str, dict[str, str]]:
    """The evaluations that flags name.

    Args:
      given: {flag: what it was given, once or several times}.
      taken: names of further evaluations.

    Returns:
      {name: {"type": …, its data}}. An evaluation is called as the folder or file of its data; of
      two with one name each has the folder above before it.

    Raises:
      UserError: two have one name, a place is empty, or a folder is for another flag.
    """
    wanted = [
        (kind, place)
        for kind in FLAGS
        for text in given.get(kind, ())
        for place in _places(text, f"--{kind}")
    ]
    parts = [_parts(place) for _, place in wanted]
    short = [_name(one[-1:]) for one in parts]
    found: dict[str, dict[str, str]] = {}
    for (kind, place), own, name in zip(wanted, parts, short, strict=True):
        if short.count(name) > 1 or name in taken:
            name = _name(own[-2:])
        if name in found or name in taken:
            raise UserError(
                f"--{kind}={place} is called {name}, as another evaluation is; leave out one of "
                "them, or name both in a file for --config"
            )
        _check_task(kind, place)
        found[name] = {"type": kind, FLAGS[kind]: _known_or_path(kind, place)}
    return found


def in_words_of_flags(message: str, evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """A message that speaks of flags, not of the keys of a config that nobody wrote.

    Args:
      message: of an error.
      evaluations: those that flags name.
    """
    is_of_config = False
    for name, settings in evaluations.items():
        key, kind = f"config.evals.{name}.", settings["type"]
        message = re.sub(rf"{re.escape(key + FLAGS[kind])}\b", f"--{kind}", message)
        is_of_config |= key in message
    if is_of_config:
        message += " (settings of an evaluation stand in a file for --config)"
    return message


def _places(text, flag):
    """What has commas between it; those of a pattern such as {0,1}.tar divide nothing."""
    if not _is_name(text) and absolute(text).exists():
        return [text]
    places = re.split(r",(?![^{}]*\})", text)
    if not all(places):
        raise UserError(f"{flag}={text} names nothing; set it to a folder, a file or several")
    return places


def _is_name(place):
    return not place or place.startswith((PRESET, TFDS))


def _check_task(kind, place):
    """Raises UserError where a folder says by its layout that it is for the other flag."""
    if _is_name(place) or not absolute(place).is_dir():
        return
    told = absolute(place) / _TASK
    task = read_text(told).strip().lower() if told.exists() else ""
    if kind == "retrieval" and not task:
        raise UserError(
            f"--retrieval={place} is a folder without {_TASK}, which CLIP_benchmark's data sets "
            "for retrieval have; name a file of pairs, or name the folder by --zeroshot"
        )
    if kind == "zeroshot" and task == "retrieval":
        raise UserError(
            f"--zeroshot={place} is a data set for retrieval by its {_TASK}; name it by --retrieval"
        )


def _known_or_path(kind, place):
    """A place, or the preset that a word names which is no path."""
    is_known = kind == "zeroshot" and cut_split(place)[0] in PRESETS
    return f"{PRESET}{place}" if is_known and not absolute(place).exists() else place


def _parts(place: str) -> Sequence[str]:
    """What a place may be called by, the most telling last."""
    if place.startswith(PRESET):
        return [cut_split(place.removeprefix(PRESET))[0].partition("=")[0]]
    if place.startswith(TFDS):
        place = cut_split(place.removeprefix(TFDS))[0]
        if not absolute(place).exists():
            return [place]
    elif cut_split(place)[0] in PRESETS:
        return [cut_split(place)[0]]
    path = absolute(place)
    if path.suffix.lower() in _ENDINGS:
        path = path.with_suffix("")
    # A pattern, or the split of a data set, says less than the folder that it is in.
    while set(path.name) & set("{}*?[]") or not path.name:
        if path == path.parent:
            return ["data"]
        path = path.parent
    if path.name.lower() in SPLITS:
        return [path.parent.parent.name, f"{path.parent.name}_{path.name}"]
    return [path.parent.name, path.name]


def _name(parts):
    """A name that may be a key of a config and a folder."""
    return re.sub(r"[^\w-]+", "_", "_".join(filter(None, parts))).strip("_") or "data"
