"""Data to evaluate on: pictures, pictures with labels."""

import dataclasses
import json

import numpy as np
from etils import epath

from cyclip_jax.data.sources import create_source
from cyclip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Pictures in a fixed order.

    Attributes:
      source: whose examples they are, see data/sources.
      identity: hashable, equal for equal data: such is embedded once.
      path: what names it in a message.
    """

    source: object
    identity: tuple
    path: str


@dataclasses.dataclass(frozen=True)
class LabelledImages(ImageSet):
    """Pictures of which each belongs to a class.

    Attributes:
      labels: int [N], each example's class.
      classes: the classes' names, list[str].
      templates: sentences with {} that stand around a class's name, or None where none are known.
    """

    labels: np.ndarray
    classes: list
    templates: list | None


def open_images(path, *, config_key, source="auto", **settings):
    """Opens a file or shards as an ImageSet, without a look at labels; raises as create_source."""
    opened = create_source(source, path, config_key=config_key, **settings)
    identity = (source, str(path), *sorted((key, str(value)) for key, value in settings.items()))
    return ImageSet(opened, identity, str(path))


def open_labelled(data, *, config_key, image_key="image", label_key="label"):
    """Opens labelled pictures.

    Args:
      data: a folder with `labels.csv`, or such a CSV itself; where `classes.json` stands beside
        it ({"classes": […], "templates": ["a photo of a {}."]}), it names the classes in the order
        of their numbers. Otherwise they are the labels, sorted.
      config_key: full name of the config key that holds `data`, for messages.
      image_key, label_key: the CSV's columns; a label is a class's name or number.

    Returns:
      LabelledImages.

    Raises:
      UserError: what is wrong with it.
    """
    folder = epath.Path(data)
    path = folder / "labels.csv"
    if folder.suffix.lower() in (".csv", ".tsv"):
        folder, path = folder.parent, folder
    images = open_images(
        path, config_key=config_key, source="csv", image_key=image_key, caption_key=label_key
    )
    names = images.source.captions()
    if (folder / "classes.json").exists():
        classes, templates = read_classes(folder / "classes.json")
        labels = read_labels(names, classes, path)
    else:
        classes, templates = sorted(set(names)), None
        numbers = {name: number for number, name in enumerate(classes)}
        labels = np.asarray([numbers[name] for name in names])
    return LabelledImages(
        images.source,
        images.identity,
        str(path),
        labels=labels,
        classes=classes,
        templates=templates,
    )


def labels_among(test, train):
    """A test set's labels as numbers of a training set's classes, int [N].

    Raises:
      UserError: one of its labels is no class of the training set.
    """
    numbers = {name: number for number, name in enumerate(train.classes)}
    names = [test.classes[label] for label in test.labels]
    unknown = sorted(set(names) - numbers.keys())
    if unknown:
        raise UserError(
            f"{test.path} has labels that {train.path} has not: {', '.join(unknown[:5])}"
        )
    return np.asarray([numbers[name] for name in names])


def read_classes(path):
    """Class names and templates of a classes.json; UserError where they are not what they must."""
    try:
        content = json.loads(path.read_text())
        classes, templates = list(content["classes"]), list(content["templates"])
        for template in templates:
            template.format("")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{path} needs lists 'classes' and 'templates' ({error!r})") from error
    if not classes or not templates or not all("{}" in template for template in templates):
        raise UserError(f"{path} needs a class and a template, and a {{}} in each template")
    if len(set(classes)) < len(classes):
        raise UserError(f"{path} names a class twice")
    return classes, templates


def read_labels(labels, classes, path):
    """Class numbers int [N] of labels that are all names, or else all numbers."""
    by_name = {name: number for number, name in enumerate(classes)}
    by_number = {str(number): number for number in range(len(classes))}
    for numbers in (by_name, by_number):
        if all(label in numbers for label in labels):
            return np.asarray([numbers[label] for label in labels])
    unknown = sorted({label for label in labels if label not in by_name | by_number})
    raise UserError(
        f"{path} has labels that are neither all classes of classes.json nor all numbers below "
        f"{len(classes)}" + (f": {', '.join(map(repr, unknown[:5]))}" if unknown else "")
    )
