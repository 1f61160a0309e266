"""Pictures in a folder for each class."""

import logging

from etils import epath

from cyclip_jax.data.pillow import is_picture
from cyclip_jax.data.record import Unreadable
from cyclip_jax.data.sources.ranges import retrying
from cyclip_jax.data.transform import MAX_PIXELS
from cyclip_jax.runtime.started import import_tensorflow

# A file of one of these endings is taken for a picture without a look into it: ImageNet has 1.2
# million of them. All others are told by how they begin.
_ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
_NAMED = 3


def class_folders(folder: epath.Path) -> list[str]:
    """The names of the folders in a folder; what begins with a dot is never data."""
    return [path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]


def pictures_of_classes(base: str, keys: list[str]) -> tuple[list[str], list[str]]:
    """The pictures in the folders of some classes and those within them.

    What else lies there is named once, in a warning.

    Args:
      base: the folder that holds the classes' folders.
      keys: names of these.

    Returns:
      (paths relative to `base`, key of each), sorted within each class.
    """
    files, labels, others = [], [], []
    for key in keys:
        own = _pictures(base, key, others)
        files += own
        labels += [key] * len(own)
    _warn_of(others, base)
    return files, labels


def pictures_below(base: str) -> list[str]:
    """The paths of the pictures in a folder and those within it, relative to it and in order."""
    others = []
    files = _pictures(base, "", others)
    _warn_of(others, base)
    return files


def _warn_of(others, base):
    if others:
        named = ", ".join(others[:_NAMED]) + (", …" if len(others) > _NAMED else "")
        logging.warning(
            "%s: %d files are left out, as they are no pictures: %s", base, len(others), named
        )


def _pictures(base, inner, others):
    """The pictures in `base`/`inner` and below; what is none is added to `others`."""
    gfile = import_tensorflow().io.gfile
    pictures = []
    for name in sorted(entry.rstrip("/") for entry in gfile.listdir(f"{base}/{inner}")):
        path = f"{inner}/{name}" if inner else name
        if name[0] == ".":
            continue
        if name.lower().endswith(_ENDINGS):
            pictures.append(path)
        elif gfile.isdir(f"{base}/{path}"):
            pictures += _pictures(base, path, others)
        elif begins_as_picture(f"{base}/{path}"):
            pictures.append(path)
        else:
            others.append(path)
    return pictures


def begins_as_picture(path: str) -> bool:
    """Whether the first bytes of a file are those of a picture that the decoder reads."""

    def look():
        with import_tensorflow().io.gfile.GFile(path, "rb") as file:
            return is_picture(file, MAX_PIXELS)

    try:
        return retrying(look)
    except Unreadable:
        return False
