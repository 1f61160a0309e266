"""Pictures of several things, of which each has an attribute: a red cube and a blue ball."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Int

from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.choices import Pictures, picture_at, read_rows
from cyclip_jax.evals.data.image_set import ImageSet
from cyclip_jax.files import how_written


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Pictures, and what is in them.

    Attributes:
      images: the pictures.
      things: of each, (attribute, noun) of at least two things that differ in both.
    """

    images: ImageSet
    things: list[tuple[tuple[str, str], ...]]

    @property
    def numbers(self) -> list[Int[np.ndarray, "k"]]:
        """The numbers of each picture's things among all things, int [k]."""
        ends = np.cumsum([len(things) for things in self.things])
        return np.split(np.arange(ends[-1]), ends[:-1])

    def captions(self, template: str) -> list[str]:
        """What each picture shows in words: "a red cube and a blue ball".

        Args:
          template: of one thing, with {attribute} and {noun}.
        """
        return [_caption(things, template) for things in self.things]

    def swapped_captions(self, template: str) -> list[str]:
        """The same words with the attributes moved on by one thing."""
        return [
            _caption(
                [
                    (attribute, noun)
                    for (attribute, _), (_, noun) in zip(
                        (*things[1:], things[0]), things, strict=True
                    )
                ],
                template,
            )
            for things in self.things
        ]


def _caption(things: Sequence[tuple[str, str]], template: str) -> str:
    return " and ".join(template.format(attribute=a, noun=n) for a, n in things)


def open_scenes(path: str, *, images: str | None, config_key: str) -> Scenes:
    """Reads what is in pictures, and no picture.

    Args:
      path: JSON, a list of {"image": path, "things": [[attribute, noun], …]}, or a line for each.
      images: folder of the pictures; None is that of the file.
      config_key: full name of the config key that holds `path`, for messages.

    Raises:
      UserError: what is wrong with the file.
    """
    file = epath.Path(path)
    if not file.exists() or file.suffix.lower() not in (".json", ".jsonl"):
        raise UserError(f"{path} is no .json or .jsonl{how_written(path)}; set {config_key}")
    folder = file.parent if images is None else epath.Path(images)
    places, everything = [], []
    for number, row in enumerate(read_rows(file), start=1):
        try:
            things = tuple((str(attribute), str(noun)) for attribute, noun in row["things"])
            places.append((picture_at(folder, row["image"]), None))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f'{file}, example {number} is not {{"image": path, "things": [[attribute, noun], '
                f"…]}} ({error}); mend it"
            ) from error
        if len(things) < 2 or any(
            len(set(part)) < len(things) for part in zip(*things, strict=True)
        ):
            raise UserError(
                f"{file}, example {number} needs two things or more that differ in attribute and "
                "noun; mend it, or leave it out"
            )
        everything.append(things)
    return Scenes(ImageSet(Pictures(places), ("scenes", str(path), str(images)), path), everything)
