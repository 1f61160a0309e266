"""What the classes of a data set are called, in the order of their numbers."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int

from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.keys import first_number, plain, sorted_keys
from cyclip_jax.evals.data.known import PRESETS, class_names, class_templates
from cyclip_jax.files import absolute, how_written, parse_json, read_text

DEFAULT_TEMPLATES = ("a photo of a {}.",)
_BY_NUMBER = 'give the names by the setting `classes` as {"label": "name", …}'
# Numbers, WordNet's numbers, and the like of "class_3".
_NUMBER = re.compile(r"(n(?=\d{8}$)|class|category|label|id)?[ _.-]*\d+(\.\d+)?", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Naming:
    """What a file says of a data set's classes.

    Attributes:
      path: of the file.
      names: by the classes' numbers, a list; or {what the data set calls it: name}; or None.
      templates: sentences with {} for the name; or None.
    """

    path: str
    names: list[str] | dict[str, str] | None
    templates: list[str] | None


def read_classes(path: epath.Path) -> Naming:
    """The Naming of a classes.json; UserError where the file is not what it must be."""
    try:
        content = parse_json(path.read_text())
        names, templates = content.get("classes"), content.get("templates")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read as a JSON object{how_written(path)} ({error})"
        ) from error
    if not names and not templates:
        raise UserError(f"{path} needs lists 'classes' and 'templates', or one of them")
    listed = list(names.values()) if isinstance(names, dict) else names
    if names is not None and not _are_texts(listed):
        raise UserError(f"{path}: 'classes' must be a list of texts")
    if templates:
        templates = checked_templates(templates, f"{path}: 'templates'")
    return Naming(str(path), names, templates)


def named_classes(given: str) -> tuple[list[str], list[str]]:
    """(names, templates, perhaps none) of --classes: names with commas between them, or a file.

    Raises:
      UserError: the file is not what it must be.
    """
    path = absolute(given)
    if "," in given and not path.exists():
        return [name for name in map(str.strip, given.split(",")) if name], []
    if not path.exists():
        raise UserError(
            f"--classes={given} is neither a file{how_written(given)} nor names with commas "
            "between them"
        )
    if path.suffix != ".json":
        return [line for line in map(str.strip, read_text(path).splitlines()) if line], []
    naming = read_classes(path)
    names = list(naming.names.values()) if isinstance(naming.names, dict) else naming.names
    if not names:
        raise UserError(f"{path} has no list 'classes'")
    return names, naming.templates or []


def naming_beside(folder: epath.Path) -> Naming | None:
    """The Naming of a folder's `classes.json` or of CLIP_benchmark's two text files; else None."""
    if (folder / "classes.json").exists():
        return read_classes(folder / "classes.json")
    names, templates = (
        _lines(folder / name)
        for name in ("classnames.txt", "zeroshot_classification_templates.txt")
    )
    if templates is not None:
        templates = checked_templates(
            [template.replace("{c}", "{}") for template in templates],
            f"{folder}/zeroshot_classification_templates.txt",
        )
    if names is None and templates is None:
        return None
    return Naming(str(folder / "classnames.txt"), names, templates)


def _lines(path):
    if not path.exists():
        return None
    return [line.strip() for line in read_text(path).rstrip("\r\n").split("\n")]


def checked_templates(templates: Any, where: str) -> list[str]:
    """Templates as a list.

    Args:
      templates: what is to be a list or tuple of texts, each with one {} and no other braces.
      where: the file or config key that has them, for messages.

    Raises:
      UserError: it is not, or has none.
    """
    if not templates or not _are_texts(templates):
        raise UserError(f"{where} must be a list of texts, such as {DEFAULT_TEMPLATES[0]!r}")
    for template in templates:
        before, *after = template.split("{}")
        if len(after) != 1 or {"{", "}"} & set(before + after[0]):
            raise UserError(
                f"{where} needs a {{}} in each template, and no other braces: {template}"
            )
    return list(templates)


def _are_texts(texts):
    return isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts)


def mean_nothing(keys: Sequence[str]) -> bool:
    """Whether all keys of classes are numbers in some form, which no text encoder knows."""
    return all(_NUMBER.fullmatch(key) for key in keys)


def templates_of(namings: Sequence[Naming | None], preset: str | None) -> list[str]:
    """The first templates that any of the Namings, or else the preset of this name, has."""
    for naming in namings:
        if naming is not None and naming.templates:
            return naming.templates
    known = None if preset is None else class_templates(preset)
    return known or list(DEFAULT_TEMPLATES)


def name_classes(
    labels: Sequence[str],
    keys: list[str] | None,
    namings: Sequence[Naming | None],
    preset: str | None,
    path: str,
) -> tuple[list[str], list[str], Int[np.ndarray, "n"]]:
    """Names the classes of a data set.

    Args:
      labels: what stands for each picture's class, list[str] [N].
      keys: what stands for each class, in their order; None where the labels alone tell.
      namings: Namings or None; the first with names counts.
      preset: name of the preset that names them otherwise, or None.
      path: of the data, for messages.

    Returns:
      (keys list[str] [C], names list[str] [C], labels int [N]).

    Raises:
      UserError: the classes named are not those of the data.
    """
    known = None if preset is None else PRESETS[preset]
    naming = next((naming for naming in namings if naming is not None and naming.names), None)
    if naming is not None and keys is None and isinstance(naming.names, list):
        return naming.names, naming.names, read_labels(labels, naming.names, path)
    by_key = {}
    if naming is not None:
        by_key = _by_key(naming, keys, path)
        keys = keys or list(by_key)
    if keys is None:
        keys = _keys_of_labels(labels, known, path)
    present = set(labels)
    if known is not None and known.own_classes:
        keys = [key for key in keys if key in present]
    if naming is not None:
        names = [_look_up(by_key, key, naming.path, path) for key in keys]
    else:
        names = keys if preset is None else class_names(preset, keys, path)
    numbers = {key: number for number, key in enumerate(keys)}
    unknown = sorted(present - numbers.keys())
    if unknown:
        raise UserError(
            f"{path} has labels that are no classes: {', '.join(map(repr, unknown[:5]))} "
            f"(classes: {', '.join(keys[:5])}, …)"
        )
    return keys, names, np.asarray([numbers[label] for label in labels])


def _by_key(naming, keys, path):
    """{key: name} of a Naming; its list is in the order of the keys."""
    if isinstance(naming.names, dict):
        return naming.names
    if len(naming.names) != len(keys):
        raise UserError(
            f"{naming.path} names {len(naming.names)} classes, and {path} has {len(keys)}"
        )
    return dict(zip(keys, naming.names, strict=True))


def _keys_of_labels(labels, known, path):
    """The classes where only labels are there; a preset knows how many numbers there are."""
    keys = sorted_keys(set(labels))
    if known is None or not all(key.isdecimal() for key in keys):
        return keys
    first = first_number(map(int, keys), known.classes)
    if first is None:
        raise UserError(
            f"whether the labels of {path} count the {known.classes} classes from 0 or from 1 on "
            f"cannot be told: they go from {keys[0]} to {keys[-1]}; {_BY_NUMBER}"
        )
    return [str(number) for number in range(known.classes)] if first == 0 else keys


def _look_up(by_key, key, naming_path, path):
    if key in by_key:
        return by_key[key]
    found = {name for other, name in by_key.items() if plain(other) == plain(key)}
    if len(found) != 1:
        raise UserError(f"{naming_path} has no name for the class {key!r} of {path}")
    return found.pop()


def read_labels(labels: Sequence[str], classes: Sequence[str], path: str) -> Int[np.ndarray, "n"]:
    """Class numbers int [N] of labels that are all names, or else all numbers from 0 on.

    Args:
      labels: of N pictures.
      classes: the names of the classes in their order.
      path: of the data, for messages.

    Raises:
      UserError: the labels are neither.
    """
    by_name = {name: number for number, name in enumerate(classes)}
    by_number = {str(number): number for number in range(len(classes))}
    for numbers in (by_name, by_number):
        if all(label in numbers for label in labels):
            if numbers is by_name and len(by_name) < len(classes):
                raise UserError(
                    f"the classes of {path} name a class twice; let its labels be numbers"
                )
            if numbers is by_number and "0" not in labels:
                raise UserError(
                    f"{path} has no label 0: whether its labels count the {len(classes)} classes "
                    f"from 0 or from 1 on cannot be told; {_BY_NUMBER}"
                )
            return np.asarray([numbers[label] for label in labels])
    unknown = sorted({label for label in labels if label not in by_name | by_number})
    raise UserError(
        f"{path} has labels that are neither all classes of classes.json nor all numbers below "
        f"{len(classes)}" + (f": {', '.join(map(repr, unknown[:5]))}" if unknown else "")
    )
