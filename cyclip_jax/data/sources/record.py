"""One example as a source reads it, and the choice of one caption among several."""

import hashlib
import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from cyclip_jax.errors import UserError


class Unreadable(Exception):
    """An example that cannot be used.

    Attributes:
      reason: why, in words that many examples share: they are counted by it.
      detail: what else is known of this one.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason: str = reason
        self.detail: str = detail


class Record(NamedTuple):
    """An example: the picture's file as bytes, its captions, and how often each is to be drawn."""

    image: bytes
    captions: list[str]
    weights: list[float]


class Source(Protocol):
    """Pairs of a picture and captions that can be read by their number, see sources/__init__.py."""

    def __len__(self) -> int:
        """The number of examples."""
        ...

    def read(self, index: int) -> Record:
        """The Record of an example; raises Unreadable. Many threads may call it."""
        ...

    def keys(self, indices: Iterable[int]) -> list[str]:
        """What names these examples in a report."""
        ...

    def captions(self) -> list[str]:
        """The first caption of every example."""
        ...

    @property
    def boundaries(self) -> Int[np.ndarray, "runs+1"]:
        """Where runs of neighbours begin, and the end, int64 [runs + 1]."""
        ...

    @property
    def mean_bytes(self) -> float:
        """Mean size of an example."""
        ...

    @property
    def faults(self) -> Sequence[tuple[str, str, str]]:
        """(key, reason, detail) of what is lost before it has a number."""
        ...


class CaptionRule:
    """What of a record is its captions: fields, their weights, and templates around them.

    Args:
      fields: name of the field with the caption, or a tuple of several.
      weights: of each field, or None for equal ones. A field that holds several captions shares
        its weight among them.
      templates: sentences with {} that stand around every caption, each equally often; none leaves
        the captions as they are.

    Raises:
      UserError: as many weights as fields are wanted, not negative and not all 0; a template
        without {}.
    """

    def __init__(
        self,
        fields: str | Iterable[str],
        weights: Iterable[float] | None = None,
        templates: Iterable[str] = (),
    ) -> None:
        self.fields: tuple[str, ...] = (fields,) if isinstance(fields, str) else tuple(fields)
        self.weights: tuple[float, ...] = (
            (1.0,) * len(self.fields) if weights is None else tuple(weights)
        )
        self.templates: tuple[str, ...] = tuple(templates)
        if len(self.weights) != len(self.fields) or min(self.weights) < 0 or not sum(self.weights):
            raise UserError(
                f"config.data.caption_weights is {self.weights} for {len(self.fields)} field(s) of "
                f"captions, {', '.join(self.fields)}; set it to one weight for each, not negative"
            )
        for template in self.templates:
            if "{}" not in template:
                raise UserError(
                    f"the template {template!r} in config.data.templates has no {{}}, the place "
                    "of the caption"
                )

    def record(self, image: bytes, values: Iterable[Iterable[str | bytes]]) -> Record:
        """A Record, of a picture and what its fields hold.

        Args:
          image: bytes.
          values: for each field a list of captions, str or UTF-8 bytes.

        Raises:
          Unreadable: every caption is blank, or one is not UTF-8.
        """
        captions, weights = [], []
        for texts, weight in zip(values, self.weights, strict=True):
            texts = [text for text in map(_as_text, texts) if text.strip()]
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
        return Record(image, captions, weights)


def draw_caption(record: Record, seed: int, epoch: int, index: int) -> str:
    """The caption of an example in one epoch, drawn by weight: a pure function."""
    if len(record.captions) == 1:
        return record.captions[0]
    digest = hashlib.blake2b(struct.pack("<3q", seed, epoch, index), digest_size=8).digest()
    cumulative = np.cumsum(record.weights)
    draw = int.from_bytes(digest, "little") / 2**64 * cumulative[-1]
    return record.captions[int(np.searchsorted(cumulative[:-1], draw, side="right"))]


def _as_text(value):
    if not isinstance(value, str | bytes):
        raise Unreadable("the caption is no text", repr(value))
    try:
        return value if isinstance(value, str) else value.decode()
    except UnicodeDecodeError as error:
        raise Unreadable("the caption is not UTF-8", f"byte {error.start + 1}") from error
