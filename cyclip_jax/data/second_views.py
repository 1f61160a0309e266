"""The settings of second views and of negatives: what a run sees of an example besides its pair.

They are drawn from random numbers of their own, so that the picture and the caption are those
of a run without second views, bit for bit.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

from cyclip_jax.data.captions import another_caption
from cyclip_jax.data.draws import EDA, SWAPPED, Draws
from cyclip_jax.data.eda import eda
from cyclip_jax.data.record import Record
from cyclip_jax.data.swaps import swapped
from cyclip_jax.data.transform import Transform, check_setting
from cyclip_jax.data.wordnet import open_parts_of_speech, open_synonyms
from cyclip_jax.errors import UserError
from cyclip_jax.files import FilePath

# Function (record, its caption, seed, epoch, index) → the second view of the caption.
SecondCaption: TypeAlias = Callable[[Record, str, int, int, int], str]

SECOND_IMAGES = ("none", "autoaugment", "randaugment", "crops")
SECOND_CAPTIONS = ("none", "eda", "another", "first_sentence")
NEGATIVE_CAPTIONS = ("none", "swap", "given")
DRAWS = ("each_epoch", "once")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecondViews:
    """What the second views of an example are; by default there are none.

    Attributes:
      second_image: "none"; "autoaugment" or "randaugment", which change the picture by this policy
        instead of the run's own; or "crops", another random crop of the picture.
      second_caption: "none"; "eda" (see eda.py); "another" of the example's captions; or
        "first_sentence", what is before the first full stop with a space behind it.
      second_caption_draws: "each_epoch", or "once", which shows the same second view of a caption
        in every epoch.
      negative_caption: a wrong caption: "none"; "swap" (see swaps.py); or "given" with the example.
      negative_caption_key: where a given one is.
      negative_image_key: where a picture is that a given one describes.
      synonyms: folder with WordNet's files for "eda" and "swap"; None takes those of an installed
        package.

    Raises:
      UserError: a name is not one of those allowed, or where the wrong caption is is not said.
    """

    second_image: str = "none"
    second_caption: str = "none"
    second_caption_draws: str = "each_epoch"
    negative_caption: str = "none"
    negative_caption_key: str | None = None
    negative_image_key: str | None = None
    synonyms: FilePath | None = None

    def __post_init__(self) -> None:
        for key, names in (
            ("second_image", SECOND_IMAGES),
            ("second_caption", SECOND_CAPTIONS),
            ("second_caption_draws", DRAWS),
            ("negative_caption", NEGATIVE_CAPTIONS),
        ):
            check_setting(key, getattr(self, key), names)
        if (self.negative_caption == "given") != (self.negative_caption_key is not None):
            raise UserError(
                "config.data.negative_caption 'given' and config.data.negative_caption_key belong "
                "together; set both, or neither"
            )
        if self.negative_image_key is not None and self.negative_caption_key is None:
            raise UserError(
                "config.data.negative_image_key is that of pictures which wrong captions describe, "
                "and there are none with the examples; set config.data.negative_caption='given' "
                "and config.data.negative_caption_key"
            )

    def transform(self, first: Transform) -> Transform | None:
        """What happens to a picture for its second view; None where it has none.

        Args:
          first: what happens to it for the first.

        Raises:
          UserError: a second crop is wanted, and the first one is not random.
        """
        if self.second_image == "none":
            return None
        if self.second_image != "crops":
            return dataclasses.replace(first, policy=self.second_image)
        if first.augmentation != "random_resized_crop":
            raise UserError(
                "config.data.second_image is 'crops', but config.data.augmentation is "
                f"{first.augmentation!r}, whose crops are all the same; set "
                "config.data.augmentation='random_resized_crop'"
            )
        return first

    def caption(self) -> SecondCaption | None:
        """What makes the second view of a caption; None where it has none. It opens WordNet.

        Raises:
          UserError: WordNet's files are needed and not there, or damaged.
        """
        if self.second_caption == "none":
            return None
        if self.second_caption == "first_sentence":
            return lambda record, caption, seed, epoch, index: caption.split(". ")[0]
        synonyms = open_synonyms(self.synonyms) if self.second_caption == "eda" else None
        is_drawn_once = self.second_caption_draws == "once"

        def second(record, caption, seed, epoch, index):
            epoch = 0 if is_drawn_once else epoch
            if synonyms is None:
                return another_caption(record, caption, seed, epoch, index)
            return eda(caption, synonyms, Draws(seed, epoch, index, EDA))

        return second

    def negative(self) -> SecondCaption | None:
        """What makes a wrong caption, "" where it cannot; None where none is wanted.

        Raises:
          UserError: WordNet's files are needed and not there, or damaged.
        """
        if self.negative_caption == "none":
            return None
        if self.negative_caption == "given":
            return lambda record, caption, seed, epoch, index: record.negative
        part_of_speech = open_parts_of_speech(self.synonyms)

        def negative(record, caption, seed, epoch, index):
            return swapped(caption, part_of_speech, Draws(seed, epoch, index, SWAPPED))

        return negative
