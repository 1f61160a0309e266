"""Compositional understanding: the right caption or picture among ones that differ by little."""

import dataclasses
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from etils import epath
from jaxtyping import Bool, Float
from PIL import Image

from cyclip_jax.data.mistaken import mistaken_for
from cyclip_jax.data.pillow import encoded_as
from cyclip_jax.data.sources import Record, Unreadable
from cyclip_jax.data.sources.ranges import read_whole, stands_alone
from cyclip_jax.data.tables import Table
from cyclip_jax.errors import UserError
from cyclip_jax.evals.checks import check_named, check_types
from cyclip_jax.evals.data.image_set import ImageSet
from cyclip_jax.evals.data.pairs import distinct
from cyclip_jax.evals.evaluator import Evaluator
from cyclip_jax.evals.flat import flat_numbers
from cyclip_jax.evals.metric import SHARE, count
from cyclip_jax.evals.statistics.intervals import floats, interval, mean_with_interval
from cyclip_jax.files import FilePath, how_written, parse_json

_LAYOUTS = ("choice", "winoground")
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
# Of four similarities in random order: each of two comparisons is won half the time, and both of
# both by the four orders of 24 in which the two right ones come first.
_WINOGROUND_CHANCE = {"text_score": 1 / 4, "image_score": 1 / 4, "group_score": 1 / 6}
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
_TILE_ROWS = 4096


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
class Compositional:
    """Scores choices between captions that share most of their words.

    The layout "choice" has a picture, its caption and one or more wrong ones; a choice is right
    when its own caption is more similar than every other. ARO's files (Yuksekgonul et al. 2023),
    also with boxes, its order tasks' `test_cases` written to a .json, and SugarCrepe's files (Hsieh
    et al. 2023) are read as they are.

    The layout "winoground" has two pictures and their two captions of the same words (Thrush et al.
    2022): the text score asks that each picture prefer its caption, the image score that each
    caption prefer its picture, the group score both.

    Ties are misses everywhere. The intervals are over pictures, of which one brings all its
    examples and boxes along; of "winoground" over pairs of pictures, which are its examples.

    Attributes:
      name: of the evaluation.
      examples: a .json, .jsonl or .csv, or a folder of such, of which each then is a category.
        Fields of "choice": image_path, image or filename; true_caption or caption; false_caption or
        negative_caption, one or a list, or in place of these caption_options, the right one first;
        bbox_x, bbox_y, bbox_w, bbox_h, the part of the picture that is meant, in pixels. Of
        "winoground": image_0, image_1 (".png" is added to a name without ending), caption_0,
        caption_1.
      images: folder of the pictures; default that of `examples`.
      layout: "choice" or "winoground".
      category_key: field that examples are grouped by; default what the published files have
        (relation_name, attributes, category; collapsed_tag, tag), else the file's name.

    Raises:
      UserError: the settings alone show that something is wrong.
    """

    name: str
    _: dataclasses.KW_ONLY
    examples: FilePath
    images: FilePath | None = None
    layout: str = "choice"
    category_key: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.layout not in _LAYOUTS:
            raise UserError(
                f"config.evals.{self.name}.layout is {self.layout!r}; choose one of "
                f"{', '.join(map(repr, _LAYOUTS))}"
            )
        check_named(self, "examples")

    def open(self) -> Evaluator:
        """Opens the data.

        Returns:
          An evaluator (see evals/__init__.py) that gives, with intervals, `accuracy` and
          `macro_accuracy`, the mean over the categories, and `blind_accuracy`, which chooses by the
          text alone: every picture is the mean of all; or `text_score`, `image_score` and
          `group_score`; what `chance_…` gets, a wrong caption that is listed again counting once;
          `examples`, `images`, `captions`: what was scored. `categories.json` has the same by
          category. Outcomes: each of `examples` has its `category`, its accuracies or its three
          scores, and `cluster`, which are of the same pictures.

        Raises:
          UserError: what is wrong with the files.
        """
        config_key = f"config.evals.{self.name}"
        opened = _open_examples(
            self.examples, self.images, self.layout, self.category_key, config_key
        )
        pictures = list(dict.fromkeys(p for example in opened for p in example.pictures))
        source = Pictures(pictures)
        identity = ("pictures", str(self.examples), str(self.images), self.layout)
        image_set = ImageSet(source, identity, str(self.examples))

        def evaluate(encoders, output):
            image_embeds, indices = encoders.image_embeds(image_set)
            image_number = {pictures[index]: row for row, index in enumerate(indices)}
            kept = [n for n, e in enumerate(opened) if all(p in image_number for p in e.pictures)]
            scored = [opened[number] for number in kept]
            if not scored:
                raise UserError(f"no example of {self.examples} has pictures that can all be read")
            captions = [caption for example in scored for caption in example.captions]
            text_ids, first = distinct(captions)
            text_embeds = encoders.text_embeds([captions[index] for index in first])
            image_ids = np.array([[image_number[p] for p in e.pictures] for e in scored])
            text_rows = np.split(text_ids, np.cumsum([len(e.captions) for e in scored])[:-1])
            categories = np.array([example.category for example in scored])
            clusters = distinct([tuple(path for path, _ in e.pictures) for e in scored])[0]
            groups = categories, clusters
            score = _winoground if self.layout == "winoground" else _choice
            metrics, table, hits = score(image_embeds, text_embeds, image_ids, text_rows, *groups)
            output.json("categories", table)
            of_examples = {"index": kept, "cluster": clusters, "category": categories, **hits}
            output.outcomes({"examples": of_examples})
            return {
                **metrics,
                "examples": count(len(scored)),
                "images": count(len(np.unique(image_ids))),
                "captions": count(len(text_embeds)),
            }

        return evaluate


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

    def captions(self) -> list[str]:
        """None of them has one: "" for each."""
        return [""] * len(self)

    def read(self, index: int) -> Record:
        """The Record of a picture; raises Unreadable."""
        path, box = self._pictures[index]
        content = read_whole(path)
        return Record(content if box is None else _cropped(content, box), [""], [1.0])


def choices_made(
    right: Float[np.ndarray, "n"], wrong: Float[np.ndarray, "n k"]
) -> Bool[np.ndarray, "n"]:
    """Whether each choice is right, bool [N]: ties and NaN are misses.

    Args:
      right: similarities of the right answers, [N].
      wrong: those of the wrong ones, [N, K], -inf where there are fewer than K.
    """
    return np.all(right[:, None] > wrong, axis=1)


def winoground_scores(similarities: Float[np.ndarray, "n 2 2"]) -> Bool[np.ndarray, "n 3"]:
    """Text, image and group score of each example, bool [N, 3] (Thrush et al. 2022).

    The similarities, [N, 2, 2], are of image i with caption j.
    """
    own = np.stack([similarities[:, 0, 0], similarities[:, 1, 1]], axis=1)  # [N, 2]
    text = choices_made(own[:, 0], similarities[:, 0, 1:]) & choices_made(
        own[:, 1], similarities[:, 1, :1]
    )
    image = choices_made(own[:, 0], similarities[:, 1:, 0]) & choices_made(
        own[:, 1], similarities[:, :1, 1]
    )
    return np.stack([text, image, text & image], axis=1)


def _choice(image_embeds, text_embeds, image_ids, text_rows, categories, clusters):
    """(metrics, rows of the table, {name: hits}) of the layout "choice"."""
    sizes = np.array([len(row) for row in text_rows])
    is_right = _right(image_embeds, text_embeds, image_ids[:, 0], text_rows)
    # Whoever does not look at the picture sees the mean of all.
    mean_image = image_embeds[np.unique(image_ids)].mean(axis=0, keepdims=True)
    is_right_blind = _right(mean_image, text_embeds, np.zeros_like(image_ids[:, 0]), text_rows)
    chance = 1 / sizes  # of each example

    def accuracy(rows, hits=is_right):
        return mean_with_interval(
            hits[rows], clusters=clusters[rows], chance=float(np.mean(chance[rows]))
        )

    everything = np.arange(len(is_right))
    metrics = {
        "accuracy": accuracy(everything),
        "blind_accuracy": _neither(accuracy(everything, is_right_blind)),
        "macro_accuracy": _macro_accuracy(is_right, chance, categories, clusters),
    }
    table = []
    for category, rows in _by_category(categories):
        found = accuracy(rows)
        low, high = found.interval or (np.nan, np.nan)
        row = {"category": category, "examples": len(rows), "accuracy": found.value}
        row |= {"low": low, "high": high, "chance": found.chance}
        table.append(row | {"blind_accuracy": float(is_right_blind[rows].mean())})
    return metrics, table, {"accuracy": is_right, "blind_accuracy": is_right_blind}


def _neither(metric):
    """A Metric of which neither more nor less is better, and which is no headline."""
    return dataclasses.replace(metric, better=None, is_headline=False)


def _right(image_embeds, text_embeds, image_rows, text_rows):
    """Whether each example's picture prefers its first caption, bool [N].

    Args:
      image_rows: number of each example's picture, [N].
      text_rows: numbers of its captions, N arrays.
    """
    sizes = np.array([len(row) for row in text_rows])
    similarities = np.full((len(text_rows), sizes.max()), -np.inf)
    for column in range(sizes.max()):
        has = np.flatnonzero(sizes > column)
        texts = np.array([text_rows[row][column] for row in has])
        similarities[has, column] = _similarities(image_embeds, text_embeds, image_rows[has], texts)
    return choices_made(similarities[:, 0], similarities[:, 1:])


def _macro_accuracy(is_right, chance, categories, clusters):
    """The mean over the categories of each one's accuracy, as a Metric."""
    numbers = np.unique(categories, return_inverse=True)[1]

    def mean_of_means(values, weights):
        drawn = np.bincount(numbers, weights=weights)
        means = np.bincount(numbers, weights=weights * values)[drawn > 0] / drawn[drawn > 0]
        return means.mean()

    each_once = np.ones(len(is_right))
    bounds = interval(
        lambda weights: mean_of_means(is_right, weights[clusters]), clusters.max() + 1
    )
    return SHARE.metric(
        float(mean_of_means(is_right, each_once)),
        floats(bounds),
        float(mean_of_means(chance, each_once)),
    )


def _winoground(image_embeds, text_embeds, image_ids, text_rows, categories, clusters):
    """(metrics, rows of the table, {name: hits}) of the layout "winoground"."""
    text_ids = np.stack(text_rows)  # [N, 2]
    similarities = np.empty((len(text_ids), 2, 2))
    for image in range(2):
        for text in range(2):
            similarities[:, image, text] = _similarities(
                image_embeds, text_embeds, image_ids[:, image], text_ids[:, text]
            )
    scores = winoground_scores(similarities)
    hits = dict(zip(_WINOGROUND_CHANCE, scores.T, strict=True))
    metrics = {
        name: mean_with_interval(hits[name], clusters=clusters, chance=chance)
        for name, chance in _WINOGROUND_CHANCE.items()
    }
    table = []
    for category, rows in _by_category(categories):
        own = {n: mean_with_interval(h[rows], clusters=clusters[rows]) for n, h in hits.items()}
        table.append({"category": category, "examples": len(rows)} | flat_numbers(own))
    return metrics, table, hits


def _by_category(categories):
    """[(name, its examples' numbers)], sorted by name."""
    names, numbers = np.unique(categories, return_inverse=True)
    return [(str(name), np.flatnonzero(numbers == n)) for n, name in enumerate(names)]


def _similarities(image_embeds, text_embeds, image_ids, text_ids):
    """Inner products float64 [N] of the images with the texts of these numbers.

    Each is summed in the same order, so that equal embeddings are equally similar to the last bit.
    """
    tiles = []
    for first in range(0, len(image_ids), _TILE_ROWS):
        tile = slice(first, first + _TILE_ROWS)
        images = image_embeds[image_ids[tile]].astype(np.float64)
        tiles.append((images * text_embeds[text_ids[tile]]).sum(axis=1))
    return np.concatenate(tiles)


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
        rows = _read_rows(file)
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


def _read_rows(file):
    """The examples of a file, list[dict]; raises UserError."""
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
    picture = (_picture_at(folder, _first_of(row, _IMAGE_KEYS)), box)
    right, *wrong = _texts(captions)
    return Example((picture,), (right, *dict.fromkeys(wrong)), category)


def _winoground_example(row, folder, category):
    names = [row[f"image_{number}"] for number in range(2)]
    names = [name if pathlib.PurePosixPath(name).suffix else f"{name}.png" for name in names]
    captions = [row[f"caption_{number}"] for number in range(2)]
    pictures = tuple((_picture_at(folder, name), None) for name in names)
    return Example(pictures, _texts(captions), category)


def _picture_at(folder, name):
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
