"""Data to evaluate on: pictures, pictures with labels."""

import dataclasses
import logging
from typing import Any, Protocol

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from cyclip_jax.data.places import PRESET, TFDS, DataPath, cut_split
from cyclip_jax.data.reading import LabelReading, Reading
from cyclip_jax.data.sources import CaptionRule, DataSet, create_source
from cyclip_jax.data.sources.subset import Subset
from cyclip_jax.data.sources.table import CAPTION_KEY, IMAGE_KEY, CsvSource, StringArray
from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.class_folders import class_folders, pictures_of_classes
from cyclip_jax.evals.data.class_names import (
    Naming,
    mean_nothing,
    name_classes,
    naming_beside,
    read_classes,
    templates_of,
)
from cyclip_jax.evals.data.image_set import ImageSet
from cyclip_jax.evals.data.keys import sorted_keys
from cyclip_jax.evals.data.known import has_mappings, objectnet_folders, preset_of
from cyclip_jax.evals.encoders import Encoders
from cyclip_jax.evals.statistics.splits import held_out
from cyclip_jax.files import FilePath, how_written, read_text

SPLITS = {"train", "trainval", "training", "val", "valid", "validation", "test", "testing"}


@dataclasses.dataclass(frozen=True)
class LabelledImages(ImageSet):
    """Pictures of which each belongs to a class.

    Attributes:
      labels: int [N], each example's class.
      classes: the classes' names, list[str]; two may have the same, as ImageNet's two missiles.
      keys: what the data itself calls the classes, list[str], all different where it tells.
      templates: sentences with {} that stand around a class's name, list[str].
      is_named: whether `classes` are more than numbers, or the like, that nobody has named.
    """

    labels: Int[np.ndarray, "n"]
    classes: list[str]
    keys: list[str]
    templates: list[str]
    is_named: bool


@dataclasses.dataclass(frozen=True)
class _Stored:
    """Labelled pictures as they lie somewhere.

    Attributes:
      images: ImageSet.
      labels: what stands for each picture's class, list[str] [N]; "" where nothing does.
      keys: what stands for each class, in their order; None where the labels alone tell.
      naming: Naming that lies beside them, or None.
    """

    images: ImageSet
    labels: list[str]
    keys: list[str] | None
    naming: Naming | None


def check_images(path: str, *, config_key: str, source: str = "auto", **settings: Any) -> None:
    """Raises UserError where `open_images` would without a look at the data."""
    DataSet(source, str(path), Reading(**settings), config_key)


def open_images(path: str, *, config_key: str, source: str = "auto", **settings: Any) -> ImageSet:
    """Opens a file or shards as an ImageSet, without a look at labels.

    Args:
      path, source, settings: as `create_source`.
      config_key: full name of the config key that holds `path`, for messages.

    Raises:
      UserError: what `create_source` refuses.
    """
    opened = create_source(source, path, config_key=config_key, **settings)
    default_keys = (IMAGE_KEY, CAPTION_KEY) if isinstance(opened, CsvSource) else (None, None)
    # The captions' columns count too: a row where they are blank is not read.
    columns = [
        settings.get(name) or default
        for name, default in zip(("image_key", "caption_key"), default_keys, strict=True)
    ]
    columns = [(key,) if isinstance(key, str) else tuple(key or ()) for key in columns]
    return ImageSet(opened, (str(path), *columns), str(path))


def open_labelled(
    data: DataPath,
    *,
    config_key: str,
    image_key: str | None = None,
    label_key: str | None = None,
    split: str | None = None,
    classes: FilePath | None = None,
    preset: str | None = None,
    usual_split: str | None = None,
) -> LabelledImages:
    """Opens labelled pictures.

    Names and templates are those of `classes`, else those beside the data, else the preset's, else
    the data's own names and "a photo of a {}.".

    Args:
      data: one of
        a folder with `labels.csv`, or such a CSV itself;
        a folder with a folder for each class, in the order of their names, of which every file
        that the decoder knows is a picture;
        a folder as CLIP_benchmark exports it: tars with labels in `.cls` in `<split>/`;
        "tfds:NAME[/CONFIG][@SPLIT]" with a ClassLabel, or for the name the folder of one built;
        "preset:NAME[=PLACE][@SPLIT]", one of known.PRESETS, in TensorFlow Datasets or in a place
        as above.
        Beside the classes of a folder may stand `classes.json`, see `classes`.
      config_key: full name of the config key that holds `data`, for messages.
      image_key, label_key: columns, endings or features; default "image" and "label", in tars the
        usual endings and "cls". A label is a class's name or number.
      split: in place of @SPLIT; of a folder it is one within. Of a preset in TensorFlow Datasets,
        "train" is what linear probes are trained on and may be more splits than one. A data set
        with splits is opened by default at "test", or at "train" where config_key ends so.
      classes: JSON file {"classes": …, "templates": ["a photo of a {}."]} or one of the two. The
        classes are a list in the order of their numbers, or {what the data calls it: name}.
      preset: its name where `data` does not say it.
      usual_split: the split of a data set with splits, where nothing names one; None goes by
        config_key.

    Raises:
      UserError: what is wrong with it.
    """
    usual = usual_split or _usual_split(config_key)
    place, split, preset = _resolve(str(data), split, preset, config_key, usual)
    chosen = None if classes is None else read_classes(epath.Path(classes))
    try:
        stored = _open(place, split, preset, config_key, image_key, label_key, usual)
    except UserError as error:
        raise UserError(_with_evaluation_keys(str(error), config_key)) from error
    path = stored.images.path
    missing = stored.labels.count("")
    if missing:
        raise UserError(f"{missing} of the {len(stored.labels)} pictures of {path} have no label")
    namings = chosen, stored.naming
    keys, names, labels = name_classes(stored.labels, stored.keys, namings, preset, path)
    if len(names) == 1:
        logging.warning("%s has one class, so that every answer is right by chance too", path)
    return LabelledImages(
        stored.images.source,
        stored.images.identity,
        path,
        labels=labels,
        classes=names,
        keys=keys,
        templates=templates_of(namings, preset),
        is_named=preset is not None
        or any(naming is not None and naming.names for naming in namings)
        or not mean_nothing(keys),
    )


def check_labelled(
    data: str, *, config_key: str, split: str | None = None, preset: str | None = None
) -> None:
    """Raises UserError where `open_labelled` would without a look at the data."""
    _resolve(str(data), split, preset, config_key, _usual_split(config_key))


def open_named(data: str, *, config_key: str, **settings: Any) -> LabelledImages:
    """Opens labelled pictures as `open_labelled`; prompts need classes that have names.

    Raises:
      UserError: as there, or the classes are numbers or the like that nobody has named.
    """
    dataset = open_labelled(data, config_key=config_key, **settings)
    if not dataset.is_named:
        raise UserError(
            f"the classes of {dataset.path} ({', '.join(dataset.keys[:2])}, …) are numbers without "
            f"names; set {config_key.rpartition('.')[0]}.classes to a file of names, or .preset"
        )
    return dataset


def part_of(
    images: LabelledImages, share: float, *, is_held_out: bool, config_key: str
) -> LabelledImages:
    """The pictures that are held out, so that settings can be chosen by them, or the others.

    Args:
      images: all of them.
      share: of each class that has two or more, rounded down, but one picture at least; with 0
        nothing is held out.
      is_held_out: which part is wanted.
      config_key: full name of the config key that holds their place, for messages.

    Raises:
      UserError: nothing can be held out.
    """
    if not share:
        return images
    held = held_out(images.labels, share, 0, config_key, "held_out_share")
    rows = np.flatnonzero(held == is_held_out)
    return dataclasses.replace(
        images,
        source=Subset(images.source, rows),
        identity=(images.identity, "held out" if is_held_out else "the rest", share),
        labels=images.labels[rows],
    )


def labels_among(test: LabelledImages, train: LabelledImages) -> Int[np.ndarray, "n"]:
    """A test set's labels as numbers of a training set's classes, int [N].

    Raises:
      UserError: one of its labels is no class of the training set, or two classes have one name.
    """
    if test.classes == train.classes:
        return test.labels
    numbers = {name: number for number, name in enumerate(train.classes)}
    if len(numbers) < len(train.classes):
        raise UserError(
            f"{train.path} has two classes of one name, and not the classes of {test.path}"
        )
    names = [test.classes[label] for label in test.labels]
    unknown = sorted(set(names) - numbers.keys())
    if unknown:
        raise UserError(
            f"{test.path} has labels that {train.path} has not: {', '.join(unknown[:5])}"
        )
    return np.asarray([numbers[name] for name in names])


@dataclasses.dataclass(frozen=True)
class Features:
    """What a model makes of TrainAndTest: of the pictures that can be read.

    Attributes:
      train, test: features of the N and M pictures, float [N, D] and [M, D].
      train_labels, test_labels: their classes, int [N] and [M].
      test_index: int [M], the numbers of the test's pictures in the data set.
    """

    train: Float[np.ndarray, "n d"]
    train_labels: Int[np.ndarray, "n"]
    test: Float[np.ndarray, "m d"]
    test_labels: Int[np.ndarray, "m"]
    test_index: Int[np.ndarray, "m"]

    @property
    def test_items(self) -> dict[str, np.ndarray]:
        """What all outcomes of the test's pictures begin with: which they are, and their labels."""
        return {"index": self.test_index, "label": self.test_labels}


@dataclasses.dataclass(frozen=True)
class TrainAndTest:
    """Labelled images to learn from and others to test on.

    Attributes:
      train, test: LabelledImages.
      test_labels: int [N], the labels of `test` as numbers of the classes of `train`.
    """

    train: LabelledImages
    test: LabelledImages
    test_labels: Int[np.ndarray, "n"]

    def features(self, encoders: Encoders, normalize: bool) -> Features:
        """Embeds both sets; `normalize` gives the features unit norm."""
        embed = encoders.image_embeds if normalize else encoders.image_features
        train, indices = embed(self.train)
        test, test_indices = embed(self.test)
        return Features(
            train, self.train.labels[indices], test, self.test_labels[test_indices], test_indices
        )


class TrainAndTestSettings(Protocol):
    """What the settings of an evaluation say of its two sets.

    Attributes:
      name: of the evaluation, for messages.
      train, test: as `data` of `open_labelled`.
      image_key, label_key: as there.
    """

    @property
    def name(self) -> str: ...
    @property
    def train(self) -> str: ...
    @property
    def test(self) -> str: ...
    @property
    def image_key(self) -> str | None: ...
    @property
    def label_key(self) -> str | None: ...


def check_train_and_test(settings: TrainAndTestSettings) -> None:
    """Raises UserError where `open_train_and_test` would without a look at the data."""
    for key, data in (("train", settings.train), ("test", settings.test)):
        check_labelled(data, config_key=f"config.evals.{settings.name}.{key}")


def open_train_and_test(
    settings: TrainAndTestSettings, *, classes: str | None = None, are_named: bool = False
) -> TrainAndTest:
    """Opens TrainAndTest for an evaluation.

    Args:
      settings: the evaluation's.
      classes: as `open_labelled`.
      are_named: whether the classes must have names, as in `open_named`.

    Raises:
      UserError: what is wrong with the data, or both are the same.
    """
    key = f"config.evals.{settings.name}"
    open_set = open_named if are_named else open_labelled
    columns = {"image_key": settings.image_key, "label_key": settings.label_key}
    train_set, test_set = (
        open_set(data, config_key=f"{key}.{part}", classes=classes, **columns)
        for part, data in (("train", settings.train), ("test", settings.test))
    )
    if train_set.identity == test_set.identity:
        raise UserError(
            f"{key}.train and {key}.test are the same pictures ({test_set.path}); set {key}.test "
            "to others"
        )
    return TrainAndTest(train_set, test_set, labels_among(test_set, train_set))


def _resolve(data, split, preset, config_key, usual):
    """(place, split, preset) of what `open_labelled` is given; folders may have no split."""
    if not data:
        raise UserError(f"{config_key} is empty; set it to labelled pictures")
    data, written = cut_split(data) if data.startswith((PRESET, TFDS)) else (data, "")
    if written and split and written != split:
        raise UserError(f"{config_key} names the split {written!r}, and `split` is {split!r}")
    is_own_split = data.startswith(TFDS) and bool(written)
    split = split or written
    if data.startswith(PRESET):
        named, _, data = data.removeprefix(PRESET).partition("=")
        if preset not in (None, named):
            raise UserError(f"{config_key} is of the preset {named!r}, and `preset` is {preset!r}")
        preset = named
    known = None if preset is None else preset_of(preset, config_key)
    if not data:
        if known is None or known.tfds is None:
            raise UserError(
                f"TensorFlow Datasets has no {preset}; set {config_key} to a folder of it, or to "
                f"{PRESET}{preset}=FOLDER"
            )
        data = TFDS + known.tfds
    if data.startswith(TFDS) and not is_own_split:
        split = split or usual
        if known is not None and split in ("train", "test"):
            split = getattr(known, split)
        if split is None:
            raise UserError(f"{config_key}: {preset} has no training split")
    if split and _is_table(data):
        raise UserError(f"{data} is one file and has no split {split!r}")
    return data, split, preset


def _is_table(place):
    return not place.startswith(TFDS) and epath.Path(place).suffix.lower() in (".csv", ".tsv")


def _usual_split(config_key):
    return "train" if config_key.endswith("train") else "test"


def _with_evaluation_keys(message, config_key):
    """A source's message, with an evaluation's settings in place of the training data's."""
    evaluation = config_key.rpartition(".")[0]
    message = message.replace("config.data.image_key", f"{evaluation}.image_key")
    return message.replace("config.data.caption_key", f"{evaluation}.label_key")


def _open(place, split, preset, config_key, image_key, label_key, usual):
    """The _Stored of a place, whatever its layout."""
    if place.startswith(TFDS):
        return _open_tfds(place, split, config_key, image_key or "image", label_key or "label")
    folder = epath.Path(place)
    columns = image_key or "image", label_key or "label"
    if _is_table(place):
        return _open_csv(folder, naming_beside(folder.parent), config_key, *columns)
    if not split and _is_exported(folder / usual):
        split = usual
    base = folder / split if split else folder
    if (base / "labels.csv").exists():
        naming = naming_beside(base) or naming_beside(folder)
        return _open_csv(base / "labels.csv", naming, config_key, *columns)
    if _is_exported(base):
        return _open_exported(base, config_key, image_key, label_key or "cls")
    return _open_folders(folder, base, preset, config_key)


def _open_csv(path, naming, config_key, image_key, label_key):
    images = open_images(
        path, config_key=config_key, source="csv", image_key=image_key, caption_key=label_key
    )
    for fault in getattr(images.source, "row_faults", {}).values():  # a label would be cut
        raise UserError(f"{path} cannot be used: {': '.join(fault)}; mend the row")
    return _Stored(images, images.source.captions(), None, naming)


def _is_exported(folder):
    return (folder / "nshards.txt").exists()


def _open_exported(folder, config_key, image_key, label_key):
    """One split of a data set that CLIP_benchmark has exported as tars."""
    kind = folder.parent / "dataset_type.txt"
    if kind.exists() and read_text(kind).strip().lower() != "classification":
        raise UserError(f"{kind} says {read_text(kind).strip()}; labels are one class a picture")
    shards = read_text(folder / "nshards.txt").strip()
    if not shards.isdecimal() or len(shards) > 9 or not int(shards):
        raise UserError(f"{folder}/nshards.txt is {shards!r}, not the number of tars")
    images = open_images(
        f"{folder}/{{0..{int(shards) - 1}}}.tar",
        config_key=config_key,
        source="webdataset",
        image_key=image_key,
        caption_key=label_key,
        usual=LabelReading(),
    )
    naming = naming_beside(folder) or naming_beside(folder.parent)
    keys = None
    if naming is not None and isinstance(naming.names, list):
        keys = [str(number) for number in range(len(naming.names))]
    return _Stored(images, images.source.captions(), keys, naming)


def _open_tfds(place, split, config_key, image_key, label_key):
    """A data set of TensorFlow Datasets, whose own metadata have its classes in their order."""
    images = open_images(
        f"{place}@{split}",
        config_key=config_key,
        source="tfds",
        image_key=image_key,
        caption_key=label_key,
    )
    import tensorflow_datasets as tfds

    name = place.removeprefix(TFDS)
    is_built = "/" in name and epath.Path(name).exists()
    builder = (tfds.builder_from_directory if is_built else tfds.builder)(name)
    feature: Any = builder.info.features
    for part in label_key.split("/"):
        feature = feature[part]
    if not getattr(feature, "names", None):
        raise UserError(
            f"the feature {label_key!r} of {place} is no ClassLabel; set config.data.caption_key"
        )
    return _Stored(images, images.source.captions(), feature.names, None)


def _open_folders(folder, base, preset, config_key):
    """A folder for each class, at `base` within the data set's `folder`."""
    naming, wanted = naming_beside(base) or naming_beside(folder), None
    if preset == "objectnet" and has_mappings(folder):
        base, wanted = objectnet_folders(folder)
        naming = Naming(str(folder), wanted, None)
    keys = sorted_keys(class_folders(base)) if base.is_dir() else []
    if not keys:
        raise UserError(
            f"{base}{how_written(base)} has neither labels.csv, nor nshards.txt, nor a folder for "
            f"each class; set {config_key} to labelled pictures"
        )
    if SPLITS.issuperset(keys):
        raise UserError(
            f"the folders of {base} are no classes but splits ({', '.join(keys)}); set "
            f"{config_key.rpartition('.')[0]}.split, or {config_key} to one of them"
        )
    if wanted is not None:
        keys = [key for key in keys if key in wanted]
    files, labels = pictures_of_classes(str(base), keys)
    if not files:
        raise UserError(f"the folders of {base} have no pictures; set {config_key} to others")
    source = CsvSource(str(base), _strings(files), [_strings(labels)], CaptionRule("label"))
    identity = ("folders", str(base), "wanted" if wanted else "all")
    return _Stored(ImageSet(source, identity, str(base)), labels, keys, naming)


def _strings(texts):
    encoded = [text.encode() for text in texts]
    return StringArray(b"".join(encoded), np.cumsum([len(text) for text in encoded]).tolist())
