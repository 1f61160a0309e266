"""Captions with the pictures that they retrieve, as one picture."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

_MOST_CAPTIONS = 8  # of the picture, however many the report shows
_MARGIN, _LINE, _FRAME = 6, 16, 3  # pixels
_CHARACTERS = 90  # of a caption
_PAPER, _INK, _OWN = "white", "black", (0, 90, 181)


def as_picture(queries: Sequence[Mapping[str, Any]], side: int) -> UInt8[np.ndarray, "h w 3"]:
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
