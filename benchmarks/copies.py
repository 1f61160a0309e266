"""Measures how many changed copies of pictures data.inspect finds, what else it takes for copies,
and how long it looks at many pictures.

    python -m benchmarks.copies
    python -m benchmarks.copies --examples=20000 --workers=2

The pictures are parts of the photographs that scikit-image, scikit-learn and matplotlib bring, and
the drawings of the quickstart. Drawings that differ from others by design in a colour or a detail
alone, such as flags, hearts or people, are counted by themselves. Each change is made to each
picture, and copies are looked for among the pictures and their copies together.

With --examples, so many parts of the photographs at random places are written as JPEG files, and
the command is started as a user starts it. Its memory is that of its largest process.
"""

import argparse
import csv
import importlib.util
import io
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
from PIL import Image, ImageEnhance

from benchmarks.report import table, write_json
from cyclip_jax.data import emoji
from cyclip_jax.data.inspection.duplicates import changed_copies
from cyclip_jax.data.inspection.thumbnails import Thumbnails, is_flat, thumbnail

SIDE = 112
PHOTOGRAPHS = {
    "skimage/data": (
        *("astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png"),
        *("clock_motion.png", "coffee.png", "coins.png", "grass.png", "gravel.png"),
        *("hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png"),
        *("retina.jpg", "rocket.jpg", "text.png"),
    ),
    "sklearn/datasets/images": ("china.jpg", "flower.jpg"),
    "matplotlib/mpl-data/sample_data": ("grace_hopper.jpg",),
}
LOOK_ALIKE = {
    *("flag", "clock", "heart", "woman", "man", "person", "face", "square", "moon"),
}
COLUMNS = {
    "change": ("change", "s"),
    "photographs found": ("photographs", ".1%"),
    "drawings found": ("drawings", ".1%"),
    "look-alikes found": ("look_alikes", ".1%"),
    "taken for copies of others: photographs": ("wrong_photographs", "d"),
    "drawings": ("wrong_drawings", "d"),
    "look-alikes": ("wrong_look_alikes", "d"),
}
TIMES = {
    "examples": ("examples", ",d"),
    "workers": ("workers", "d"),
    "seconds": ("seconds", ".0f"),
    "memory, MiB": ("mebibytes", ",.0f"),
    "copies": ("copies", ",d"),
}


def compressed(picture, quality=60):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def turned(picture, share):
    planes = np.array(picture.convert("HSV"))
    planes[..., 0] += np.uint8(round(255 * share) % 256)
    return Image.fromarray(planes, "HSV").convert("RGB")


def part(picture, kept, rng):
    """A part with so much of each side, anywhere."""
    width, height = round(picture.width * kept), round(picture.height * kept)
    left = int(rng.integers(0, picture.width - width + 1))
    top = int(rng.integers(0, picture.height - height + 1))
    return picture.crop((left, top, left + width, top + height))


def without_edges(picture, share):
    x, y = round(picture.width * share), round(picture.height * share)
    return picture.crop((x, y, picture.width - x, picture.height - y))


def halved(picture):
    return picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BICUBIC)


CHANGES = {
    "JPEG at quality 60": lambda picture, rng: compressed(picture),
    "half the size": lambda picture, rng: halved(picture),
    "5 % cut off in height and width": lambda picture, rng: part(picture, 0.95, rng),
    "5 % of the area cut off": lambda picture, rng: part(picture, 0.95**0.5, rng),
    "5 % cut off at each of four edges": lambda picture, rng: without_edges(picture, 0.05),
    "brightness × 0.8 to 1.2": lambda picture, rng: ImageEnhance.Brightness(picture).enhance(
        rng.uniform(0.8, 1.2)
    ),
    "brightness × 1.2": lambda picture, rng: ImageEnhance.Brightness(picture).enhance(1.2),
    "contrast × 0.7 to 1.3": lambda picture, rng: ImageEnhance.Contrast(picture).enhance(
        rng.uniform(0.7, 1.3)
    ),
    "colours × 0.5 to 1.5": lambda picture, rng: ImageEnhance.Color(picture).enhance(
        rng.uniform(0.5, 1.5)
    ),
    "hues turned by up to 18°": lambda picture, rng: turned(picture, rng.uniform(-0.05, 0.05)),
    "grey": lambda picture, rng: picture.convert("L").convert("RGB"),
    "cut, brighter, and JPEG at quality 75": lambda picture, rng: compressed(
        part(ImageEnhance.Brightness(picture).enhance(rng.uniform(0.85, 1.15)), 0.95, rng), 75
    ),
}


def photographs():
    """[(name, RGB picture)] of the photographs."""
    found = []
    for place, names in PHOTOGRAPHS.items():
        package, _, folder = place.partition("/")
        spec = importlib.util.find_spec(package)
        for name in names:
            with Image.open(pathlib.Path(spec.origin).parent / folder / name) as picture:
                found.append((name, picture.convert("RGB")))
    return found


def pictures(folder):
    """[(kind, RGB picture)]: parts of photographs that do not overlap, and drawings."""
    found = []
    for _, whole in photographs():
        for top in range(0, whole.height - SIDE + 1, SIDE):
            for left in range(0, whole.width - SIDE + 1, SIDE):
                found.append(("photographs", whole.crop((left, top, left + SIDE, top + SIDE))))
    emoji.build(folder)
    for name in emoji.CSV_NAMES.values():
        with open(folder / name, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                is_look_alike = emoji.kind_of(row["caption"]) in LOOK_ALIKE
                with Image.open(folder / row["image"]) as picture:
                    kind = "look_alikes" if is_look_alike else "drawings"
                    found.append((kind, picture.convert("RGB")))
    return found


def thumbnails_of(found):
    planes = [thumbnail(np.asarray(picture)) for picture in found]
    return Thumbnails(*map(np.concatenate, zip(*planes, strict=True)))


def measure(found, only):
    """A row for each change whose name has `only`."""
    shown = thumbnails_of(picture for _, picture in found)
    rows = np.flatnonzero(~is_flat(shown.luma))
    shown, found = shown.at(rows), [found[row] for row in rows]
    kinds = np.array([kind for kind, _ in found])
    names = list(dict.fromkeys(kinds.tolist()))
    print(", ".join(f"{(kinds == kind).sum()} {kind}" for kind in names), flush=True)
    results, n = [], len(found)
    for change, make in CHANGES.items():
        if only not in change:
            continue
        rng = np.random.default_rng(0)
        copies = thumbnails_of(make(picture, rng) for _, picture in found)
        both = Thumbnails(*(np.concatenate(planes) for planes in zip(shown, copies, strict=True)))
        originals = changed_copies(both, lambda more: None)
        first = np.where(originals[:n] >= 0, originals[:n], np.arange(n))
        is_found = originals[n:] == first  # of a picture that is taken for another, the latter
        is_wrong = (originals[:n] >= 0).astype(int) + ((originals[n:] >= 0) & ~is_found)
        row = {"change": change}
        for kind in names:
            row[kind] = float(is_found[kinds == kind].mean())
            row[f"wrong_{kind}"] = int(is_wrong[kinds == kind].sum())
        results.append(row)
    return results


def write_examples(folder, count):
    """Writes train.csv and so many JPEG files."""
    rng, whole = np.random.default_rng(0), [picture for _, picture in photographs()]
    rows = []
    for number in range(count):
        picture = whole[int(rng.integers(len(whole)))]
        side = int(rng.integers(SIDE // 2, max(SIDE // 2 + 1, min(picture.size) // 3)))
        left, top = (int(rng.integers(0, length - side + 1)) for length in picture.size)
        small = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
        small.save(folder / f"{number:07d}.jpg", quality=90)
        rows.append([f"{number:07d}.jpg", f"picture {number} of something"])
    with open(folder / "train.csv", "w", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], *rows])


def measure_time(count, workers):
    """Inspects so many examples; returns the row."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_examples(folder, count)
        command = [sys.executable, "-m", "cyclip_jax.data.inspect", f"--workers={workers}"]
        command += [f"--data={folder / 'train.csv'}", f"--output={folder / 'out'}"]
        start = time.perf_counter()
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seconds = time.perf_counter() - start
    (copies,) = (int(line.split()[0]) for line in printed.splitlines() if "changed copy" in line)
    mebibytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {
        "examples": count,
        "workers": workers,
        "seconds": seconds,
        "mebibytes": mebibytes,
        "copies": copies,
    }


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, help="how many are looked at for the time")
    parser.add_argument("--only", default="", help="a word of the changes that are measured")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", help="file for the rows")
    options = parser.parse_args(arguments)
    if options.examples is not None:
        rows, columns = [measure_time(options.examples, options.workers)], TIMES
    else:
        with tempfile.TemporaryDirectory() as name:
            rows, columns = (
                measure(pictures(pathlib.Path(name) / "drawings"), options.only),
                COLUMNS,
            )
    print(table(rows, columns))
    if options.json is not None:
        write_json(options.json, rows)


if __name__ == "__main__":
    main()
