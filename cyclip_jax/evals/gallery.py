"""The pictures that are shown of a retrieval: what captions find, and what is confused."""

import base64
import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw

from cyclip_jax.data.pillow import small_jpeg

_IMAGES = 6  # for each caption
_SIDE = 96  # pixels of a picture, at most
# Of the gallery as one picture.
_MOST_CAPTIONS = 8
_MARGIN, _LINE, _FRAME = 6, 16, 3  # pixels
_CHARACTERS = 90  # of a caption
_PAPER, _INK, _OWN = "white", "black", (0, 90, 181)
_LOOKED_AT = 2000  # captions that miss, of which the most confused are taken: no full matrix


@dataclasses.dataclass(frozen=True)
class Answers:
    """T captions, and I pictures among which they search.

    Attributes:
      read: function from a picture's number in the data set to its example.
      index: int [I], those numbers.
      captions: of the T texts.
      caption_of_image: {row of a picture: its first caption}.
      image_embeds, text_embeds: unit-norm [I, D] and [T, D].
      image_ids, text_ids: int [P], the rows of each pair's picture and caption.
      text_ranks: int [T], the rank of each caption's best picture, 0 is first.
    """

    read: Callable[[int], Any]
    index: Int[np.ndarray, "i"]
    captions: Sequence[str]
    caption_of_image: Mapping[int, str]
    image_embeds: Float[np.ndarray, "i d"]
    text_embeds: Float[np.ndarray, "t d"]
    image_ids: Int[np.ndarray, "p"]
    text_ids: Int[np.ndarray, "p"]
    text_ranks: Int[np.ndarray, "t"]

    def own(self, text: int) -> Int[np.ndarray, "own"]:
        """The rows of a caption's pictures."""
        return self.image_ids[self.text_ids == text]

    def thumbnail(self, image: int) -> str:
        """A picture by its row, as a small JPEG in base64."""
        from cyclip_jax.data.decoding import pixels_of  # TensorFlow: slow to import

        pixels = pixels_of(self.read(self.index[image]).image)
        return base64.b64encode(small_jpeg(pixels, _SIDE)).decode()


def gallery(answers: Answers, count: int) -> list[dict[str, Any]]:
    """So many captions, drawn at random, with the images nearest to them, as the report shows them.

    Returns:
      [{"caption", "rank" of its best image from 1, "of", "images": [{"jpeg", "is_partner"}]}], for
      JSON; pictures in base64.
    """
    chosen = np.random.default_rng(0).permutation(len(answers.captions))[:count]
    similarities = answers.text_embeds[chosen] @ answers.image_embeds.T  # [texts, images]
    queries = []
    for text, ranked in zip(chosen, np.argsort(-similarities, axis=1), strict=True):
        own = answers.own(text)
        found = [
            {"jpeg": answers.thumbnail(image), "is_partner": image in own}
            for image in ranked[:_IMAGES]
        ]
        query = {
            "caption": answers.captions[text],
            "rank": int(answers.text_ranks[text]) + 1,
            "of": len(ranked),
            "images": found,
        }
        queries.append(query)
    return queries


def confused(answers: Answers, most: int) -> list[dict[str, Any]]:
    """Captions with the image of another that is much nearer to them than their own.

    They are those of the largest differences of cosines, each of another image, among the captions
    that miss; of very many of these, among some drawn at random.

    Returns:
      [{"caption", "rank", "of", "cosine" and "jpeg" of its own nearest image, "answer": {"caption",
      "cosine", "jpeg"} of the one that comes first}], for JSON.
    """
    missed = np.flatnonzero(answers.text_ranks > 0)
    missed = np.random.default_rng(0).permutation(missed)[:_LOOKED_AT]
    found = []
    for text in missed:
        cosines = answers.image_embeds @ answers.text_embeds[text]  # [I]
        own, first = answers.own(text), int(np.argmax(cosines))
        nearest = int(own[np.argmax(cosines[own])])
        if cosines[first] > cosines[nearest]:  # neither a tie nor NaN
            found.append(
                (float(cosines[first]), float(cosines[nearest]), int(text), first, nearest)
            )
    found.sort(key=lambda one: one[1] - one[0])
    shown = []
    for cosine, its_cosine, text, first, nearest in found:
        if len(shown) == most or first in [one[0] for one in shown]:
            continue
        told = {
            "caption": answers.captions[text],
            "rank": int(answers.text_ranks[text]) + 1,
            "of": len(answers.index),
            "cosine": its_cosine,
            "jpeg": answers.thumbnail(nearest),
            "answer": {
                "caption": answers.caption_of_image[first],
                "cosine": cosine,
                "jpeg": answers.thumbnail(first),
            },
        }
        shown.append((first, told))
    return [told for _, told in shown]


def as_picture(
    queries: Sequence[Mapping[str, Any]], side: int = _SIDE
) -> UInt8[np.ndarray, "h w 3"]:
    """Draws a gallery: a row for each caption, and a frame around the pictures that it belongs to.

    Args:
      queries: [{"caption", "rank", "of", "images": [{"jpeg", "is_partner"}]}], pictures in base64.
      side: pixels of the pictures, at most.

    Returns:
      The picture, of bounded size.
    """
    queries = queries[:_MOST_CAPTIONS]
    columns = max((len(query["images"]) for query in queries), default=0)
    cell, row = side + _MARGIN, side + _LINE + 2 * _MARGIN
    width = max(columns * cell + _MARGIN, 6 * _CHARACTERS)
    sheet = Image.new("RGB", (width, max(len(queries) * row, 1)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, query in enumerate(queries):
        top = number * row + _MARGIN
        caption = " ".join(query["caption"].split())[:_CHARACTERS]
        # Pillow without FreeType draws no other letters.
        caption = caption.encode("latin-1", "replace").decode("latin-1")
        told = f"{caption} (rank {query['rank']} of {query['of']})"
        draw.text((_MARGIN, top), told, fill=_INK)
        for column, answer in enumerate(query["images"]):
            picture = Image.open(io.BytesIO(base64.b64decode(answer["jpeg"])))
            left, above = _MARGIN + column * cell, top + _LINE
            sheet.paste(picture, (left, above))
            if answer["is_partner"]:
                corner = left + picture.width - 1, above + picture.height - 1
                draw.rectangle((left, above, *corner), outline=_OWN, width=_FRAME)
    return np.asarray(sheet)
