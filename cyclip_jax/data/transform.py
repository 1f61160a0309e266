"""How a picture becomes the image that a model sees: the settings, without any picture."""

import dataclasses
import math
from collections.abc import Collection, Sequence

from cyclip_jax.errors import UserError
from cyclip_jax.runtime.setting_types import check_type

# Larger pictures are refused before they are decoded: a file of a few kilobytes can stand for
# gigabytes of pixels. Photographs of the time of writing have up to 100 megapixels.
MAX_PIXELS = 100_000_000

DECODERS = ("exact", "fast")
RESIZE_MODES = ("shortest", "squash")  # by open_clip's names
AUGMENTATIONS = ("none", "random_resized_crop")
# {name: the function of augment.py that it stands for}
POLICIES: dict[str, str | None] = {
    "none": None,
    "randaugment": "rand_augment",
    "autoaugment": "auto_augment",
}


def check_colours(where: str, mean: Sequence[float], std: Sequence[float]) -> None:
    """Raises UserError, with the name of what holds them, unless both are of three colours."""
    for name, numbers, least in (("image_mean", mean, -math.inf), ("image_std", std, 0.0)):
        check_type(f"{where}.{name}", numbers, Sequence[float], is_finite=True)
        if len(numbers) not in (1, 3) or min(numbers) <= least:
            above = ", all above 0" if least == 0 else ""
            raise UserError(f"{where}.{name} {numbers!r} must be three numbers{above}")


def check_setting(key: str, name: object, names: Collection[object]) -> None:
    """Raises UserError unless config.data's setting `key` has one of the values of `names`."""
    if name not in names:
        raise UserError(
            f"there is no {key} {name!r}; set config.data.{key} to one of "
            + ", ".join(map(repr, names))
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
    """What happens to a picture; without any setting nothing about it is random.

    Attributes:
      max_pixels: pictures of more pixels are refused without being decoded.
      decoder: "exact", or "fast", which decodes a large JPEG at a fraction of its sides (see
        `images.transform`).
      resize_mode: how a picture becomes a square without a random crop: "shortest" resizes its
        shorter side and cuts out the centre, "squash" resizes both sides.
      augmentation: "none" (only that) or "random_resized_crop".
      crop_scale: least and greatest share of the area that a random crop keeps.
      horizontal_flip: whether half of the pictures, drawn at random, are mirrored.
      colour_jitter: strength in [0, 1) of random colours (see `images.colour_jitter`); 0 is none.
      policy: "none", "randaugment" or "autoaugment" (see augment.py).

    Raises:
      UserError: a name is not one of those allowed, or a number is out of its range.
    """

    max_pixels: int = MAX_PIXELS
    decoder: str = "exact"
    resize_mode: str = "shortest"
    augmentation: str = "none"
    crop_scale: Sequence[float] = (0.9, 1.0)
    horizontal_flip: bool = False
    colour_jitter: float = 0.0
    policy: str = "none"

    def __post_init__(self) -> None:
        object.__setattr__(self, "crop_scale", tuple(self.crop_scale))  # so that it can be hashed
        for key, names in (
            ("decoder", DECODERS),
            ("resize_mode", RESIZE_MODES),
            ("augmentation", AUGMENTATIONS),
            ("horizontal_flip", (False, True)),
            ("policy", POLICIES),
        ):
            check_setting(key, getattr(self, key), names)
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise UserError(
                f"config.data.crop_scale is {self.crop_scale}; set it to the least and the "
                "greatest share of a picture that a crop keeps, 0 < least <= greatest <= 1"
            )
        if not 0 <= self.colour_jitter < 1:
            raise UserError(
                f"config.data.colour_jitter is {self.colour_jitter}; set it to a strength of at "
                "least 0, which is none, and less than 1"
            )
        if self.max_pixels < 1:
            raise UserError(
                f"config.data.max_pixels is {self.max_pixels}, which refuses every picture; set it "
                "to the greatest number of pixels to decode"
            )

    @property
    def is_random(self) -> bool:
        """Whether anything about an image is drawn at random."""
        return bool(
            self.augmentation != "none"
            or self.horizontal_flip
            or self.colour_jitter
            or self.policy != "none"
        )


# What whoever asks for nothing else gets: resize, and cut out the centre.
PLAIN = Transform()
