"""Examples of choices: pictures and captions that differ by little, from published files."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from cyclip_jax.data.mistaken import mistaken_for
from cyclip_jax.data.pillow import encoded_as
from cyclip_jax.data.sources import Record, Unreadable
from cyclip_jax.data.sources.ranges import read_whole, stands_alone
from cyclip_jax.data.tables import Table
from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.image_set import ImageSet
from cyclip_jax.files import how_written, parse_json

LAYOUTS = ("choice", "winoground")
_ENDINGS = (".json", ".jsonl", ".csv")
# Names of the fields in the published files: ARO, its order tasks, SugarCrepe.
_IMAGE_KEYS = ("image_path", "image", "filename")
_TRUE_KEYS = ("true_caption", "caption")
_FALSE_KEYS = ("false_caption", "negative_caption")
_OPTIONS_KEY = "caption_options"  # the first is the right one
_BOX_KEYS = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")  # pixels
_CATEGORY_KEYS = {
    "choice": ("relation_name", "attributes", "category"),
    "winoground": ("collapsed_tag", "tag"),
}
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


@dataclasses.dataclass(frozen=True)
class Example:
    """Pictures and captions of which those with the same number belong together.

    Attributes:
      pictures: (path, box) of each; the box (left, top, right, bottom) in pixels, or None for all.
      captions: the k-th is right for the k-th picture; further ones are wrong.
      category: what it is grouped by.
    """

    pictures: tuple[tuple[str, Box | None], ...]
    captions: tuple[str, ...]
    category: str


@dataclasses.dataclass(frozen=True)
class Choices:
    """Examples whose files are read.

    Attributes:
      path: what names them in a message.
      layout: one of LAYOUTS.
      examples: all of them.
      images: their pictures.
      pictures: what the pictures are, in the order of `images`.
    """

    path: str
    layout: str
    examples: list[Example]
    images: ImageSet
    pictures: list[tuple[str, Box | None]]

    @property
    def captions(self) -> list[str]:
        """All different captions, in the order in which they first stand."""
        return list(dict.fromkeys(text for one in self.examples for text in one.captions))


def open_choices(
    path: str,
    *,
    images: str | None,
    layout: str,
    category_key: str | None,
    config_key: str,
) -> Choices:
    """Reads examples, and no picture.

    Args:
      path, images, layout, category_key: see `Compositional`.
      config_key: full name of the section, for messages.

    Raises:
      UserError: what is wrong with the files.
    """
    examples = _open_examples(path, images, layout, category_key, config_key)
    pictures = list(dict.fromkeys(p for example in examples for p in example.pictures))
    identity = ("pictures", str(path), str(images), layout)
    return Choices(
        str(path), layout, examples, ImageSet(Pictures(pictures), identity, str(path)), pictures
    )


def check_layout(layout: Any, config_key: str) -> None:
    """Raises UserError where there is no such layout."""
    if layout not in LAYOUTS:
        raise UserError(
            f"{config_key}.layout is {layout!r}; choose one of {', '.join(map(repr, LAYOUTS))}"
        )


class Pictures:
    """Files of pictures, or rectangles of them, as a source (see data/sources)."""

    faults: Sequence[tuple[str, str, str]] = ()
    mean_bytes: float = 100_000

    def __init__(self, pictures: Sequence[tuple[str, Box | None]]) -> None:
        """Args: (path, box) of each, the box None where the whole picture is meant."""
        self._pictures = pictures
        self.boundaries = np.array([0, len(pictures)], np.int64)

    def __len__(self) -> int:
        return len(self._pictures)

    def keys(self, indices: Iterable[int]) -> list[str]:
        """Paths with the boxes, list[str]."""
        pictures = [self._pictures[index] for index in indices]
        return [path if box is None else f"{path} {box}" for path, box in pictures]

    def captions(self, first: int = 0, end: int | None = None) -> list[str]:
        """None of them has one: "" for each of these."""
        return [""] * len(self._pictures[first:end])

    def read(self, index: int) -> Record:
        """The Record of a picture; raises Unreadable."""
        path, box = self._pictures[index]
        content = read_whole(path)
        return Record(content if box is None else _cropped(content, box), [""], [1.0])


def _cropped(content, box):
    """A PNG file of a rectangle of a picture; raises Unreadable."""
    from cyclip_jax.data.decoding import pixels_of  # TensorFlow: slow to import

    picture = Image.fromarray(pixels_of(content))
    try:
        # It is decoded again at once.
        return encoded_as(picture.crop(box), "PNG", compress_level=1)
    except (OSError, ValueError, SystemError, MemoryError, Image.DecompressionBombError) as error:
        raise Unreadable("the box cannot be cut out of the image", str(error)) from error


def _open_examples(path, images, layout, category_key, config_key):
    """All examples of a file or a folder of files, list[Example]; raises UserError."""
    files = _files_at(path, config_key)
    folder = epath.Path(files[0].parent if images is None else images)
    parse = _winoground_example if layout == "winoground" else _choice_example
    keys = _CATEGORY_KEYS[layout] if category_key is None else (category_key,)
    examples = []
    for file in files:
        rows = read_rows(file)
        if category_key is not None and not any(category_key in row for row in rows):
            raise UserError(
                f"{file} has no field {category_key!r} (fields: {_fields(rows[0])}); "
                f"set {config_key}.category_key"
            )
        for number, row in enumerate(rows, start=1):
            try:
                example = parse(row, folder, _category(row, keys, file.stem))
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{file}, example {number}: {_message(error)} (fields: {_fields(row)}); "
                    f"mend it, or set {config_key}.layout"
                ) from error
            examples.append(example)
    return examples


def _files_at(path, config_key):
    """The files of examples that a path means, sorted; raises UserError where there are none."""
    place = epath.Path(path)
    files = [place]
    if place.is_dir():
        files = sorted(
            file
            for file in place.iterdir()
            if file.suffix.lower() in _ENDINGS and file.name[0] != "."
        )
    if not files or not files[0].exists():
        raise UserError(
            f"{path} is no file{how_written(path)}, and no folder with files that end in "
            f"{', '.join(_ENDINGS)}; set {config_key}.examples"
        )
    return files


def read_rows(file: epath.Path) -> list[dict[str, Any]]:
    """The examples of a file of JSON, JSON lines or CSV; raises UserError."""
    if file.suffix.lower() == ".csv":
        rows = _read_table(file)
    else:
        try:
            rows = _read_json(file)
        except (OSError, ValueError) as error:
            raise UserError(f"{file} cannot be read as {file.suffix}: {error}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{file} holds no list of examples with named fields")
    return rows


def _read_table(file):
    table = Table(str(file), ",", "a comma as its delimiter")
    rows = []
    for row in table.rows():
        if row.fault is not None:
            raise UserError(f"{file} cannot be used: {': '.join(row.fault)}; mend it")
        rows.append(dict(zip(table.names, row.fields, strict=False)))
    return rows


def _read_json(file):
    content = file.read_bytes()
    if kind := mistaken_for(content):
        raise ValueError(kind)
    text = content.decode("utf-8-sig")
    if file.suffix.lower() == ".jsonl":
        # Not str.splitlines, which also cuts at line separators within texts.
        return [
            _json_of_line(number, line)
            for number, line in enumerate(text.split("\n"), start=1)
            if line.strip()
        ]
    rows = parse_json(text)
    return list(rows.values()) if isinstance(rows, dict) else rows


def _json_of_line(number, line):
    try:
        return parse_json(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error


def _choice_example(row, folder, category):
    if _OPTIONS_KEY in row:
        captions = list(row[_OPTIONS_KEY])
    else:
        wrong = _first_of(row, _FALSE_KEYS)
        captions = [_first_of(row, _TRUE_KEYS), *(wrong if isinstance(wrong, list) else [wrong])]
    if len(captions) < 2:
        raise ValueError("it has no wrong caption")
    box = None
    if any(key in row for key in _BOX_KEYS):
        left, top, width, height = (int(float(row[key])) for key in _BOX_KEYS)
        if width < 1 or height < 1:
            raise ValueError(f"its box is {width} × {height} pixels")
        box = (left, top, left + width, top + height)
    picture = (picture_at(folder, _first_of(row, _IMAGE_KEYS)), box)
    right, *wrong = _texts(captions)
    return Example((picture,), (right, *dict.fromkeys(wrong)), category)


def _winoground_example(row, folder, category):
    names = [row[f"image_{number}"] for number in range(2)]
    names = [name if pathlib.PurePosixPath(name).suffix else f"{name}.png" for name in names]
    captions = [row[f"caption_{number}"] for number in range(2)]
    pictures = tuple((picture_at(folder, name), None) for name in names)
    return Example(pictures, _texts(captions), category)


def picture_at(folder: epath.Path, name: str) -> str:
    """The path of a picture by its name in a row."""
    is_elsewhere = stands_alone(name) and not name.startswith("/")
    return name if is_elsewhere else str(folder / name)


def _first_of(row, keys):
    """The value of the first of these fields that a row has."""
    for key in keys:
        if key in row:
            return row[key]
    raise ValueError(f"it has no field {' or '.join(keys)}")


def _texts(captions):
    if not all(isinstance(caption, str) and caption.strip() for caption in captions):
        raise ValueError("a caption is empty or no text")
    return tuple(captions)


def _category(row, keys, default):
    """What a row is grouped by; the words of a list are joined by "_"."""
    value = next((row[key] for key in keys if key in row), default)
    return "_".join(map(str, value)) if isinstance(value, list) else str(value)


def _fields(row):
    return ", ".join(map(str, row))


def _message(error):
    return f"it has no field {error}" if isinstance(error, KeyError) else str(error)
