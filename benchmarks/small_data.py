"""Shows that configs/own_data.py learns small data of two kinds, and what other runs do there.

    python -m benchmarks.small_data --output=/tmp/small_data

Both kinds come from pip. `drawings` are emoji with their German names. Held out are drawings of
emoji that training sees in another style. `photographs` are pictures of scikit-image and
scikit-learn, cut into parts. Their captions tell the picture and the place in it. Held out is one
of the nine parts of each place.

The recipe runs with three seeds on each kind. On drawings a ViT-tiny also runs as configs/cc3m.py
has it, without crops and with the cyclic terms at their full weight from the first step; as
configs/cc3m_clip.py has it, without these terms; and as configs/cc3m.py with cyclic terms that grow
in. The table is of the step STEP, after which the runs are stopped. Recall is that of the held-out
pairs.

It needs the extras `quickstart` and `test`.
"""

import argparse
import csv
import fnmatch
import hashlib
import itertools
import os
import pathlib
import re
import signal
import threading
import time

import numpy as np
import skimage.data
import sklearn.datasets
from PIL import Image

from benchmarks.report import table
from configs import cc3m, cc3m_clip, own_data
from cyclip_jax.data import emoji
from cyclip_jax.train import train
from cyclip_jax.training.collapse import collapsed_steps
from cyclip_jax.workdir.metrics import metrics_at, read_metrics

STEP = 150
SEEDS = (0, 1, 2)
CONCEPTS = 1 / 3  # of the emoji
PHOTOGRAPHS = {
    "astronaut": "an astronaut",
    "brick": "a brick wall",
    "camera": "a cameraman",
    "chelsea": "a cat",
    "coffee": "a cup of coffee",
    "coins": "old coins",
    "grass": "grass",
    "gravel": "gravel",
    "hubble_deep_field": "galaxies",
    "immunohistochemistry": "stained tissue",
    "moon": "the moon",
    "page": "a printed page",
    "retina": "a retina",
    "rocket": "a rocket",
}
MORE_PHOTOGRAPHS = {"china.jpg": "a temple", "flower.jpg": "a flower"}
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
PARTS = 3  # in a row and in a column of each place
# {name: (experiment, steps over which its cyclic terms grow in)}
OTHERS = {
    "cc3m, ViT-tiny": (cc3m, 0),
    "cc3m_clip, ViT-tiny": (cc3m_clip, 0),
    "cc3m, ViT-tiny, cyclic terms grow in": (cc3m, STEP),
}


def fraction_of(text):
    """A fraction in [0, 1) that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def drawings():
    """Yields (split, picture, caption) of emoji with German names."""
    import emoji as names

    names.config.load_language("de")
    captions = {}
    for characters, record in names.EMOJI_DATA.items():
        concept = emoji.concept_of("-".join(f"{ord(character):x}" for character in characters))
        is_chosen = not emoji.has_skin_tone(concept) and fraction_of(concept) < CONCEPTS
        if "de" in record and is_chosen:
            captions[concept] = record["de"].strip(":").replace("_", " ")
    found, _ = emoji.captioned_drawings(emoji.asset_folders(), captions)
    styles = {}
    for drawing in found:
        styles.setdefault(drawing.concept, set()).add(drawing.style)
    for drawing in found:
        is_second = drawing.style == "openmoji" and len(styles[drawing.concept]) == 2
        is_held_out = is_second and fraction_of(f"new {drawing.concept}") < 0.3
        picture = np.asarray(emoji.draw(drawing))
        yield "val" if is_held_out else "train", picture, captions[drawing.concept]


def photographs():
    """Yields (split, picture, caption) of parts of photographs."""
    pictures = [(getattr(skimage.data, name)(), said) for name, said in PHOTOGRAPHS.items()]
    for name, said in MORE_PHOTOGRAPHS.items():
        pictures.append((sklearn.datasets.load_sample_image(name), said))
    for picture, said in pictures:
        places = list(itertools.product(range(3 * PARTS), repeat=2))
        height, width = (size // (3 * PARTS) for size in picture.shape[:2])
        for row, column in places:
            part = picture[row * height : (row + 1) * height, column * width : (column + 1) * width]
            caption = f"{said}, {ROWS[row // PARTS]} {COLUMNS[column // PARTS]}"
            held_out = int(fraction_of(caption) * PARTS**2)
            is_held_out = row % PARTS * PARTS + column % PARTS == held_out
            yield "val" if is_held_out else "train", part, caption


KINDS = {"drawings": drawings, "photographs": photographs}


def build(folder, examples):
    """Writes train.csv and val.csv with their pictures, unless they are there."""
    if (folder / "val.csv").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = {"train": [], "val": []}
    for number, (split, picture, caption) in enumerate(examples):
        Image.fromarray(picture).convert("RGB").save(folder / f"{number}.png")
        rows[split].append((f"{number}.png", caption))
    for split in ("train", "val"):
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("image", "caption"), *rows[split]])


def runs(folder, others):
    """{name: config} of all runs on the data in a folder, with OTHERS or without."""
    recipe = own_data.get_config(f"{folder}/train.csv,{folder}/val.csv")
    recipe.eval_every_steps, recipe.log_every_steps = STEP // 3, STEP // 15
    configs = {}
    for seed in SEEDS:
        configs[f"own_data, seed {seed}"] = config = recipe.copy_and_resolve_references()
        config.seed = seed
    for name, (experiment, warmup_steps) in OTHERS.items() if others else ():
        configs[name] = config = experiment.get_config()
        config.num_epochs, config.total_steps = None, 2 * STEP
        config.eval_every_steps, config.log_every_steps = STEP // 3, STEP // 15
        config.model.name = "ViT-tiny"
        config.model.vocab_size = recipe.model.vocab_size
        for field in ("train", "validation", "tokenizer"):
            config.data[field] = recipe.data[field]
        config.optimizer.warmup_steps = 20
        config.loss.cyclic_warmup_steps = warmup_steps
    for config in configs.values():
        config.compilation_cache = f"{folder}/compilation_cache"
    return configs


def train_until(config, workdir, step):
    """Trains, and ends the run as SIGTERM does once it is evaluated at a step."""

    def end():
        while not is_evaluated(workdir, step):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if not is_evaluated(workdir, step):
        threading.Thread(target=end, daemon=True).start()
        train(config, workdir)


def is_evaluated(workdir, step):
    return "val/mean_recall" in metrics_at(workdir, step)


def row_of(kind, name, workdir):
    """A row of the table."""
    row, found = {"kind": kind, "run": name}, metrics_at(workdir, STEP)
    row["loss"] = found["contrastive_loss"]
    row["rank"] = found["embedding_rank"]
    low, high = (found[f"val/mean_recall_ci_{end}"] for end in ("low", "high"))
    row["recall"] = f"{found['val/mean_recall']:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
    row["chance"] = found["val/chance_mean_recall"]
    row["alarm"] = min(collapsed_steps(read_metrics(workdir)), default=None)
    return row


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder of everything")
    parser.add_argument("--kinds", default=",".join(KINDS), help="default: %(default)s")
    parser.add_argument("--runs", default="*", help="a pattern of names; default: all")
    options = parser.parse_args(arguments)
    rows = []
    for kind in options.kinds.split(","):
        build(options.output / kind, KINDS[kind]())
        for name, config in runs(options.output / kind, others=kind == "drawings").items():
            if fnmatch.fnmatch(name, options.runs):
                workdir = options.output / re.sub(r"\W+", "_", f"{kind} {name}")
                train_until(config.lock(), workdir, STEP)
                rows.append(row_of(kind, name, workdir))
    columns = {
        "data": ("kind", ""),
        "run": ("run", ""),
        "contrastive loss": ("loss", ".2f"),
        "embedding rank": ("rank", ".3f"),
        "mean recall": ("recall", ""),
        "chance": ("chance", ".1%"),
        "alarm at step": ("alarm", ""),
    }
    print(table(rows, columns))


if __name__ == "__main__":
    main()
