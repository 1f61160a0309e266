"""Known data sets: where TensorFlow Datasets has them, and what their classes are called.

Names and templates are read from the files of an installed package, CLIP_benchmark or open_clip,
which is not imported.
"""

import ast
import dataclasses
import importlib.util
import runpy
from collections.abc import Sequence
from typing import Any

from etils import epath

from cyclip_jax.data.packages import installed_path
from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.keys import are_wordnet_ids, first_number, plain
from cyclip_jax.files import how_written, parse_json

INSTALL = "pip install clip_benchmark"
_OBJECTNET_LABELS = "folder_to_objectnet_label.json"


@dataclasses.dataclass(frozen=True)
class Preset:
    """A data set of labelled pictures.

    Attributes:
      classes: their number.
      templates: key of its templates in CLIP_benchmark.
      names: key of its class names in CLIP_benchmark, where they stand by the number of the class;
        None where the data set's own names will do.
      tfds: NAME[/CONFIG] in TensorFlow Datasets; None where it has no such data set with labels.
      train, test: splits there, of no account without `tfds`; `train` is what linear probes are
        trained on in Radford et al. 2021, table 9, or None.
      other_names: {what the data set calls a class: what CLIP_benchmark calls it}, where
        upper case, blanks and punctuation are not all the difference.
      own_classes: whether only the classes that its labels name take part.
      ends_with_first: whether the last of the numbers from 1 on is the first class, as 10 stands
        for the digit 0.
    """

    classes: int
    templates: str
    names: str | None = None
    tfds: str | None = None
    train: str | None = "train"
    test: str = "test"
    other_names: dict[str, str] = dataclasses.field(default_factory=dict)
    own_classes: bool = False
    ends_with_first: bool = False


_CALTECH101 = {
    "airplanes": "airplane",
    "background_google": "background",
    "car_side": "side of a car",
    "cougar_body": "body of a cougar cat",
    "cougar_face": "face of a cougar cat",
    "crocodile_head": "head of a crocodile",
    "faces": "off-center face",
    "faces_easy": "centered face",
    "flamingo_head": "head of a flamingo",
    "leopards": "leopard",
    "motorbikes": "motorbike",
    "snoopy": "snoopy (cartoon beagle)",
    "yin_yang": "yin and yang symbol",
}


_FLOWERS102 = {"pink-yellow dahlia?": "pink and yellow dahlia", "ball moss": "air plant"}


def _imagenet(tfds, *, train=None, test="test", classes=1000):
    """A data set with ImageNet's classes; with fewer of them it is scored over its own."""
    return Preset(
        classes,
        "imagenet1k",
        names="imagenet1k",
        tfds=tfds,
        train=train,
        test=test,
        own_classes=classes < 1000,
    )


PRESETS = {
    "caltech101": Preset(
        102, "caltech101", names="caltech101_vtab", tfds="caltech101", other_names=_CALTECH101
    ),
    "cifar10": Preset(10, "cifar10", tfds="cifar10"),
    "cifar100": Preset(100, "cifar100", tfds="cifar100"),
    "dtd": Preset(47, "dtd", tfds="dtd", train="train+validation"),
    "fgvc_aircraft": Preset(100, "fgvc_aircraft"),
    "flowers102": Preset(
        102,
        "flowers",
        names="flowers",
        tfds="oxford_flowers102",
        train="train+validation",
        other_names=_FLOWERS102,
    ),
    "food101": Preset(101, "food101", tfds="food101", test="validation"),
    "gtsrb": Preset(43, "gtsrb", names="gtsrb"),
    "imagenet": _imagenet("imagenet2012", train="train", test="validation"),
    "imagenetv2": _imagenet("imagenet_v2/matched-frequency"),
    "imagenet_sketch": _imagenet("imagenet_sketch"),
    "imagenet_a": _imagenet("imagenet_a", classes=200),
    "imagenet_r": _imagenet("imagenet_r", classes=200),
    # The classes that it has in common with ImageNet, by its own names.
    "objectnet": Preset(113, "imagenet1k"),
    "oxford_pets": Preset(37, "pets", names="pets", tfds="oxford_iiit_pet"),
    "rendered_sst2": Preset(2, "renderedsst2"),
    "stanford_cars": Preset(196, "cars", tfds="cars196"),
    "stl10": Preset(10, "stl10", tfds="stl10"),
    "svhn": Preset(10, "svhn", names="svhn", tfds="svhn_cropped", ends_with_first=True),
}


def preset_of(name: str, config_key: str) -> Preset:
    """The Preset of this `name`; UserError, with its `config_key`, where there is none."""
    if name not in PRESETS:
        raise UserError(f"{config_key}: there is no preset {name!r}; choose {', '.join(PRESETS)}")
    return PRESETS[name]


def class_names(name: str, keys: Sequence[str], path: str) -> list[str]:
    """What prompts call the classes of a data set.

    Args:
      name: of the preset.
      keys: what the data set itself calls its classes, in the order of their numbers: words,
        WordNet ids, or all numbers from 0 or from 1 on.
      path: of the data, for messages.

    Returns:
      Names in the order of `keys`, list[str].

    Raises:
      UserError: these are not the preset's classes, or no installed package names them.
    """
    preset = PRESETS[name]
    instead = "give the names by the setting `classes`"
    if len(keys) != preset.classes:
        raise UserError(
            f"{path} has {len(keys)} classes and {name} has {preset.classes}; score all of its "
            f"data, or {instead}"
        )
    are_numbers = all(key.isdecimal() for key in keys)
    if are_numbers and preset.own_classes:
        raise UserError(
            f"{path} has numbers for classes, which do not tell what part of ImageNet's they are; "
            f"{instead}"
        )
    listed = _listed_names(preset)
    if preset.names is None or (listed is None and not are_numbers and not are_wordnet_ids(keys)):
        if are_numbers:
            raise UserError(f"{path} has numbers for classes; {instead}")
        return [key.replace("_", " ") for key in keys]
    if listed is None:
        raise UserError(
            f"the names of {name}'s classes come with a package: {INSTALL}; or {instead}"
        )
    if preset.names == "imagenet1k" and not are_numbers:
        rows = _rows_by_wordnet_id(keys, path, instead)
    elif are_numbers:
        rows = _rows_by_number(keys, preset.ends_with_first, path, instead)
    else:
        rows = _rows_by_words(keys, listed, preset.other_names, path, instead)
    return [listed[row] for row in rows]


def class_templates(name: str) -> list[str] | None:
    """The templates of the preset `name`, with {} for the class.

    It is None where no installed package has them.
    """
    key = PRESETS[name].templates
    if file := installed_path(
        "clip_benchmark", "datasets/en_zeroshot_classification_templates.json"
    ):
        return [template.replace("{c}", "{}") for template in parse_json(file.read_text())[key]]
    if key == "imagenet1k" and (metadata := _open_clip_metadata()):
        return [template("{}") for template in metadata["OPENAI_IMAGENET_TEMPLATES"]]
    return None


def imagenet_ids() -> list[str] | None:
    """The WordNet ids of ImageNet's 1,000 classes in their order, or None where none are found."""
    if file := installed_path("tensorflow_datasets", "datasets/imagenet2012/labels.txt"):
        return file.read_text().split()
    if file := installed_path("clip_benchmark", "datasets/builder.py"):
        for node in ast.parse(file.read_text()).body:
            if not isinstance(node, ast.Assign):
                continue
            if getattr(node.targets[0], "id", None) == "all_imagenet_wordnet_ids":
                return ast.literal_eval(node.value)
    return None


def has_mappings(folder: epath.Path) -> bool:
    """Whether a folder is ObjectNet as it is unpacked, or has its two mappings."""
    return any((path / _OBJECTNET_LABELS).exists() for path in (folder / "mappings", folder))


def objectnet_folders(folder: epath.Path) -> tuple[epath.Path, dict[str, str]]:
    """ObjectNet's own description of its folders.

    Args:
      folder: see `has_mappings`; the pictures are in its `images`, or `objectnet-1.0/images`.

    Returns:
      (folder of the pictures, {name of a folder in it: name of its class}) of the classes that it
      has in common with ImageNet.

    Raises:
      UserError: one of these is missing.
    """
    mappings = folder / "mappings" if (folder / "mappings").exists() else folder
    pictures = folder / "images"
    if not pictures.exists():
        pictures = folder / "objectnet-1.0" / "images"
    labels, shared = mappings / _OBJECTNET_LABELS, mappings / "objectnet_to_imagenet_1k.json"
    for path in (pictures, labels, shared):
        if not path.exists():
            raise UserError(
                f"{path} is missing{how_written(path)}; give the folder of ObjectNet as it is "
                "unpacked"
            )
    names, shared = parse_json(labels.read_text()), parse_json(shared.read_text())
    return pictures, {key: name.lower() for key, name in names.items() if name in shared}


def _listed_names(preset):
    """Class names by their number out of an installed package, or None."""
    if preset.names is None:
        return None
    if file := installed_path("clip_benchmark", "datasets/en_classnames.json"):
        return parse_json(file.read_text())[preset.names]
    if preset.names == "imagenet1k" and (metadata := _open_clip_metadata()):
        return list(metadata["IMAGENET_CLASSNAMES"])
    return None


def _open_clip_metadata():
    file = installed_path("open_clip", "zero_shot_metadata.py")
    return runpy.run_path(str(file)) if file else None  # it imports nothing


def _rows_by_wordnet_id(keys, path, instead):
    """Places of WordNet ids among ImageNet's classes, which stand in the order of their ids."""
    ids = sorted(keys) if len(keys) == 1000 and are_wordnet_ids(keys) else imagenet_ids()
    if ids is None:
        raise UserError(
            f"which 200 of ImageNet's classes {path} has cannot be told without the list of all; "
            f"pip install 'cyclip_jax[data]'; or {instead}"
        )
    rows = {key: row for row, key in enumerate(ids)}
    _check_known(keys, rows, path, "WordNet ids of ImageNet's classes", instead)
    return [rows[key] for key in keys]


def _rows_by_number(keys, ends_with_first, path, instead):
    """Places of different numbers, all those from 0 or from 1 on; see Preset.ends_with_first."""
    numbers = [int(key) for key in keys]
    first = first_number(numbers, len(numbers))
    if first is None or len(set(numbers)) < len(numbers):
        raise UserError(f"the classes of {path} are no numbers from 0 or 1 on; {instead}")
    if ends_with_first:
        return [number % len(numbers) for number in numbers]
    return [number - first for number in numbers]


def _rows_by_words(keys, listed, other_names, path, instead):
    """Places of names that differ from those in the list by upper case and punctuation alone."""
    rows = {plain(name): row for row, name in enumerate(listed)}
    other_names = {plain(key): plain(name) for key, name in other_names.items()}
    plain_keys = [other_names.get(plain(key), plain(key)) for key in keys]
    unknown = [key for key, known in zip(keys, plain_keys, strict=True) if known not in rows]
    _check_known(unknown, (), path, "classes of the preset", instead)
    if len(set(plain_keys)) < len(keys):
        raise UserError(f"{path} has two classes of one name; {instead}")
    return [rows[key] for key in plain_keys]


def _check_known(keys, known, path, what, instead):
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise UserError(f"{path} has what are no {what}: {', '.join(unknown[:5])}; {instead}")


def classes_file(name: str) -> dict[str, Any]:
    """What can be said of a preset's classes without its data.

    Args:
      name: of the preset.

    Returns:
      {"classes": {own name: name} or, by number, a list; "templates": […]}, either where known.
    """
    preset, content = PRESETS[name], {}
    names, keys = _listed_names(preset), _own_names(preset)
    if keys is not None and (names is not None or not preset.names):
        names = dict(zip(keys, _named_for(name, keys), strict=True))
    if names is not None:
        content["classes"] = names
    templates = class_templates(name)
    if templates is not None:
        content["templates"] = templates
    return content


def _named_for(name, keys):
    """The names of all of ImageNet's classes where the preset has a part of them."""
    return class_names("imagenet" if PRESETS[name].own_classes else name, keys, name)


def _own_names(preset):
    """What TensorFlow Datasets calls the classes, where it knows that without the data."""
    if preset.names == "imagenet1k":
        return imagenet_ids()
    if preset.tfds is None or importlib.util.find_spec("tensorflow_datasets") is None:
        return None
    import tensorflow_datasets as tfds

    features: Any = tfds.builder(preset.tfds).info.features
    names = features["label"].names
    return None if all(name.isdecimal() for name in names) else names
