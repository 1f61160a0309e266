"""Where a config says that data lie: a path or pattern, tfds:NAME, or preset:NAME=PLACE."""

import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeAlias

import ml_collections

from cyclip_jax.files import Located, expanded, from_anywhere

TFDS = "tfds:"  # a data set of TensorFlow Datasets, or the folder of one that is built
PRESET = "preset:"  # a data set that evals/data/known.py knows


def cut_split(place: str) -> tuple[str, str]:
    """NAME and SPLIT of NAME@SPLIT; SPLIT is empty where there is none."""
    name, _, split = place.rpartition("@")
    return (name, split) if name and "/" not in split else (place, "")


def place_from_anywhere(place: str, settings: Mapping[str, Any]) -> str:
    """The place that means from any folder what `place` means from this one.

    Args:
      place: as a config has it.
      settings: the section that it stands in, whose `source` may say that it is a name.
    """
    return _with_path(place, from_anywhere, is_name=settings.get("source") == "tfds")


def expanded_place(place: str) -> str:
    """The place with ~ for the home folder."""
    return _with_path(place, expanded)


def _with_path(place: str, change: Callable[[str], str], *, is_name: bool = False) -> str:
    """The place with what is a path in it changed."""
    if place.startswith(PRESET):
        name, is_given, inner = place.partition("=")
        inner, split = cut_split(inner)
        inner = _with_path(inner, change)
        return name + is_given + inner + (f"@{split}" if split else "")
    if not is_name and not place.startswith(TFDS):
        return change(place)
    name, split = cut_split(place.removeprefix(TFDS))
    is_folder = "/" in name and ("://" in name or os.path.exists(expanded(name)))
    if not is_folder:
        return place
    prefix = TFDS if place.startswith(TFDS) else ""
    return prefix + change(name) + (f"@{split}" if split else "")


# The type of a setting that says where data lie.
DataPath: TypeAlias = Annotated[str, Located(place_from_anywhere)]
# Where data lie in a config, or a field of it that says so.
Place: TypeAlias = str | ml_collections.FieldReference | None
