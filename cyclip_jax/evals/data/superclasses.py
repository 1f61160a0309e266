"""Classes of classes: CIFAR-100's own, or any from a file."""

from collections.abc import Mapping, Sequence
from typing import Annotated, TypeAlias

from etils import epath

from cyclip_jax.errors import UserError
from cyclip_jax.files import Located, from_anywhere, how_written, parse_json

# Krizhevsky 2009, "Learning multiple layers of features from tiny images", table 1.
_CIFAR100 = {
    "aquatic mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food containers": "bottle bowl can cup plate",
    "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
    "household electrical devices": "clock keyboard lamp telephone television",
    "household furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large carnivores": "bear leopard lion tiger wolf",
    "large man-made outdoor things": "bridge castle house road skyscraper",
    "large natural outdoor scenes": "cloud forest mountain plain sea",
    "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium-sized mammals": "fox porcupine possum raccoon skunk",
    "non-insect invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles 1": "bicycle bus motorcycle pickup_truck train",
    "vehicles 2": "lawn_mower rocket streetcar tank tractor",
}
SUPERCLASSES = {"cifar100": {name: classes.split() for name, classes in _CIFAR100.items()}}


def _from_anywhere(superclasses, settings):
    del settings
    return superclasses if superclasses in SUPERCLASSES else from_anywhere(superclasses)


# The type of a setting that is a key of SUPERCLASSES, or a file.
Superclasses: TypeAlias = Annotated[str, Located(_from_anywhere)]


def read_superclasses(superclasses: str, *, config_key: str) -> dict[str, str]:
    """The superclass of each class.

    Args:
      superclasses: a key of `SUPERCLASSES`, or a JSON file {superclass: [class, …]}: one derived
        from WordNet for ImageNet, for example.
      config_key: full name of the config key that holds it, for messages.

    Returns:
      {class: superclass}; classes as `normal` writes them.

    Raises:
      UserError: there is no such file, it is no such JSON, or names a class twice.
    """
    if superclasses in SUPERCLASSES:
        content = SUPERCLASSES[superclasses]
    else:
        path = epath.Path(superclasses)
        if not path.exists():
            known = ", ".join(SUPERCLASSES)
            raise UserError(
                f"{config_key} is {path}, which is no file{how_written(path)} and none of {known}"
            )
        try:
            written = parse_json(path.read_text(encoding="utf-8"))
            content = {name: list(map(normal, classes)) for name, classes in written.items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{path} is not {{superclass: [class, …]}} ({error!r})") from error
    by_class = {}
    for name, classes in content.items():
        for one in classes:
            if one in by_class:
                raise UserError(f"{superclasses} has {one!r} in {by_class[one]!r} and in {name!r}")
            by_class[one] = name
    return by_class


def superclass_of_each(
    classes: Sequence[str], by_class: Mapping[str, str], *, config_key: str
) -> list[str]:
    """The superclasses of classes by what `read_superclasses` read, list[str].

    Raises:
      UserError: a class has none; it names `config_key`.
    """
    missing = [name for name in classes if normal(name) not in by_class]
    if missing:
        raise UserError(f"{config_key} has no superclass for {', '.join(map(repr, missing[:5]))}")
    return [by_class[normal(name)] for name in classes]


def normal(name: str) -> str:
    """A class's name without what differs between lists of them: "Maple Tree" is "maple_tree"."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")
