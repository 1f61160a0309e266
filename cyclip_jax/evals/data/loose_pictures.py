"""Pictures without labels: folders of them, single ones, or data of any source."""

from etils import epath

from cyclip_jax.data.sources import CaptionRule, source_told_by
from cyclip_jax.data.sources.table import CsvSource
from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.class_folders import begins_as_picture, pictures_below
from cyclip_jax.evals.data.image_set import ImageSet
from cyclip_jax.evals.data.labelled import open_images
from cyclip_jax.files import absolute, how_written

_NO_CAPTION = "-"  # of pictures that have none, as a source's examples have one


def open_pictures(path: str) -> ImageSet:
    """Opens pictures in the order of their names.

    Args:
      path: a folder, with the folders in it; a picture; or what config.data.train may be.

    Raises:
      UserError: there is nothing, or nothing in it is a picture.
    """
    if source_told_by(path) is not None:
        return open_images(path, config_key="PICTURES")
    place = absolute(path)
    if not place.exists():
        raise UserError(f"there is no file or folder {path}{how_written(path)}")
    if place.is_dir():
        names = pictures_below(str(place))
        if not names:
            raise UserError(f"no file in {path} is a picture; name another folder")
        return _loose(str(place), names)
    if not begins_as_picture(str(place)):
        raise UserError(f"{path} is no picture that can be read; name a folder or other pictures")
    return _loose(str(epath.Path(place).parent), [place.name])


def _loose(folder, names):
    captions = [_NO_CAPTION] * len(names)
    source = CsvSource(folder, names, [captions], CaptionRule("label"))
    return ImageSet(source, ("pictures", folder, tuple(names)), folder)
