"""The pictures that a run's evaluations kept, as a section of a card and files beside it."""

import base64
import binascii
import html
import re
from typing import Any

from etils import epath

from cyclip_jax.errors import UserError
from cyclip_jax.files import entries, parse_json

FOLDER = "images"
_GALLERY = "gallery.json"  # of a retrieval, see Retrieval.gallery_captions
_JPEG = b"\xff\xd8\xff"


def card_pictures(evals: epath.Path) -> tuple[str, dict[str, bytes]]:
    """Captions and the pictures that they retrieved, of the last evaluations of a run.

    Args:
      evals: the folder of the evaluations, `<workdir>/evals`.

    Returns:
      (Markdown, {name of a file in FOLDER: JPEG}).

    Raises:
      UserError: no evaluation kept pictures, or a file of them cannot be read.
    """
    parts = [
        "## Pictures",
        "",
        "Captions of the last evaluation, and the pictures nearest to them.",
    ]
    files = {}
    for path in (folder / _GALLERY for folder in entries(evals)):
        if not path.exists():
            continue
        evaluation = path.parent.name
        parts += ["", f"### {_written(evaluation)}"]
        for number, (caption, rank, jpegs) in enumerate(_queries(path), 1):
            names = [
                f"{re.sub(r'[^A-Za-z0-9.-]', '_', evaluation)}_{number}_{place}.jpg"
                for place in range(1, len(jpegs) + 1)
            ]
            files |= dict(zip(names, jpegs, strict=True))
            shown = " ".join(f"![answer]({FOLDER}/{name})" for name in names)
            parts += ["", f"{_written(caption)} (its own picture comes {rank})", "", shown]
    if not files:
        raise UserError(
            f"{evals} has no pictures; leave out --with_pictures, or evaluate with "
            "gallery_captions of a retrieval"
        )
    return "\n".join([*parts, ""]), files


def _queries(path: epath.Path) -> list[tuple[str, str, list[bytes]]]:
    """[(caption, rank of its picture, pictures nearest to it)] of a gallery."""
    try:
        content: Any = parse_json(path.read_text())
        return [
            (
                str(query["caption"]),
                f"{int(query['rank'])} of {int(query['of'])}",
                [_jpeg(answer["jpeg"]) for answer in query["images"]],
            )
            for query in content
        ]
    except (OSError, ValueError, KeyError, TypeError, binascii.Error) as error:
        raise UserError(
            f"{path} cannot be read ({error!r}); leave out --with_pictures, or evaluate again"
        ) from error


def _jpeg(text: str) -> bytes:
    content = base64.b64decode(text, validate=True)
    if not content.startswith(_JPEG):
        raise ValueError("a picture is no JPEG")
    return content


def _written(text: str) -> str:
    """A text in which nothing is Markdown or HTML."""
    line = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", line)
