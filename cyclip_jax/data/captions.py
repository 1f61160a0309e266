"""What may happen to a text before it is tokenised.

Everything that chooses a text is here: the choice among the fields of a record, the templates
around captions, and the draw of one caption in each epoch, and of another one. `eda.py` changes
texts.
"""

import hashlib
import struct
from collections.abc import Iterable
from typing import Any

import numpy as np

from cyclip_jax.data.draws import ANOTHER_CAPTION, Draws
from cyclip_jax.data.record import Record, Unreadable
from cyclip_jax.errors import UserError


class CaptionRule:
    """Says which fields of a record are its captions, with weights and with templates around them.

    Args:
      fields: name of the field with the caption, or a tuple of several.
      weights: the weight of each field, or None for equal weights. A field that holds several
        captions shares its weight among them.
      templates: sentences with {} in place of the caption, each used equally often. Without any,
        the captions stay as they are.
      takes_numbers: whether a number counts as a text, as it does of labels.
      negative: name of the field with a wrong caption, which stands last in the attribute `fields`;
        None is none.

    Attributes:
      settings: the name in config.data of what sets each of the fields.

    Raises:
      UserError: there are not as many weights as fields, one is negative or all are 0, or a
        template has no {}.
    """

    def __init__(
        self,
        fields: str | Iterable[str],
        weights: Iterable[float] | None = None,
        templates: Iterable[str] = (),
        takes_numbers: bool = False,
        negative: str | None = None,
    ) -> None:
        self.fields: tuple[str, ...] = (fields,) if isinstance(fields, str) else tuple(fields)
        self.weights: tuple[float, ...] = (
            (1.0,) * len(self.fields) if weights is None else tuple(weights)
        )
        self.templates: tuple[str, ...] = tuple(templates)
        self._takes_numbers = takes_numbers
        if len(self.weights) != len(self.fields) or min(self.weights) < 0 or not sum(self.weights):
            raise UserError(
                f"config.data.caption_weights is {self.weights} for {len(self.fields)} field(s) of "
                f"captions, {', '.join(self.fields)}; set it to one weight for "
                "each, none negative and not all 0"
            )
        self._has_negative = negative is not None
        self.settings: tuple[str, ...] = ("caption_key",) * len(self.fields)
        if negative is not None:
            self.fields = (*self.fields, negative)
            self.settings = (*self.settings, "negative_caption_key")
        for template in self.templates:
            if "{}" not in template:
                raise UserError(
                    f"the template {template!r} in config.data.templates has no {{}}; put {{}} "
                    "where the caption is to stand"
                )

    def record(
        self, image: bytes, values: Iterable[Iterable[Any]], negative_image: bytes = b""
    ) -> Record:
        """Makes a Record of a picture and of what its fields hold.

        Args:
          image: the picture's file.
          values: for each field a list of captions, str or UTF-8 bytes. Half of a character, which
            JSON can hold and UTF-8 cannot, becomes "?".
          negative_image: the file of a picture that the wrong caption describes.

        Raises:
          Unreadable: every caption is blank, or one is not UTF-8 or no text.
        """
        captions, weights, negative = [], [], ""
        *values, last = values
        if self._has_negative:
            negative = next((text for text in map(self._as_text, last) if text.strip()), "")
        else:
            values.append(last)
        for texts, weight in zip(values, self.weights, strict=True):
            texts = [text for text in map(self._as_text, texts) if text.strip()]
            if weight and texts:
                captions += texts
                weights += [weight / len(texts)] * len(texts)
        if not captions:
            raise Unreadable("the caption is empty")
        if self.templates:
            weights = [weight for weight in weights for _ in self.templates]
            captions = [
                template.replace("{}", caption)
                for caption in captions
                for template in self.templates
            ]
        return Record(image, captions, weights, negative, negative_image)

    def _as_text(self, value):
        if self._takes_numbers and isinstance(value, int | float) and value == value:
            value = str(value)
        if not isinstance(value, str | bytes):
            raise Unreadable("the caption is no text", repr(value))
        try:
            encoded = value if isinstance(value, bytes) else value.encode("utf-8", "replace")
            return encoded.decode()
        except UnicodeDecodeError as error:
            raise Unreadable("the caption is not UTF-8", f"byte {error.start + 1}") from error


def draw_caption(record: Record, seed: int, epoch: int, index: int) -> str:
    """The caption of an example in one epoch, drawn by weight.

    A pure function of its arguments.

    Args:
      record: the example.
      seed: the seed of the run's draws.
      epoch: which pass over the data this is.
      index: the example's number.
    """
    if len(record.captions) == 1:
        return record.captions[0]
    digest = hashlib.blake2b(struct.pack("<3q", seed, epoch, index), digest_size=8).digest()
    return record.captions[_drawn(record.weights, int.from_bytes(digest, "little") / 2**64)]


def another_caption(record: Record, caption: str, seed: int, epoch: int, index: int) -> str:
    """Another caption of an example than a given one, drawn by weight; the same if it has no other.

    A pure function of its arguments, with random numbers other than those of `draw_caption`.

    Args:
      record: the example.
      caption: one of its captions.
      seed, epoch, index: as of `draw_caption`.
    """
    others = [i for i, other in enumerate(record.captions) if other != caption]
    if not others:
        return caption
    draws = Draws(seed, epoch, index, ANOTHER_CAPTION)
    return record.captions[others[_drawn([record.weights[i] for i in others], draws.uniform())]]


def _drawn(weights, share):
    """The place where a share of the sum of the weights, in [0, 1), is reached."""
    cumulative = np.cumsum(weights)
    return int(np.searchsorted(cumulative[:-1], share * cumulative[-1], side="right"))
