"""Data sets of small photographs, written by the tools that people make theirs with."""

import csv
import io
import json
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import skimage.data
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

PHOTOGRAPHS = (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea())
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
NAMES = ("a face", "a cup", "a cat")  # of what the photographs show


def photograph(number):
    """A piece of a photograph that no other number has, a Pillow image of a few dozen pixels."""
    photo = PHOTOGRAPHS[number % 3]
    top = number % 90
    pixels = photo[top : top + 200, 2 * top : 2 * top + 240]
    return Image.fromarray(pixels).resize((24 + number % 5, 20 + number % 3))


def encode(image, file_format, **options):
    """The bytes of a file of a Pillow image."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def ending_of(number):
    return list(FORMATS)[number % 3]


def picture(number):
    """The bytes of a JPEG, PNG or WebP file."""
    return encode(photograph(number), FORMATS[ending_of(number)])


def caption(number):
    """Text that begins with the number, so that a batch tells which examples it holds."""
    return f"{number} {NAMES[number % 3]}, grüße"


def other_captions(number):
    return [f"{number} seen again", f"{number} and once more"]


def tokenizer(captions):
    """The number at the head of a caption, and its length. int32 [n, 2]."""
    assert all(isinstance(text, str) for text in captions)
    numbers = [int(text.split()[0]) if text else -1 for text in captions]
    return np.array([[number, len(text)] for number, text in zip(numbers, captions, strict=True)])


def write_csv(folder, numbers):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "pairs.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        for number in numbers:
            name = f"{number:03d}.{ending_of(number)}"
            (folder / name).write_bytes(picture(number))
            writer.writerow([name, caption(number)])
    return str(folder / "pairs.csv")


def tar_example(number):
    """{ending: content} of one example as img2dataset writes it."""
    fields = {
        "caption": caption(number),
        "captions": other_captions(number),
        "key": f"{number:09d}",
    }
    return {
        ending_of(number): picture(number),
        "json": json.dumps(fields).encode(),
        "txt": caption(number).encode(),
    }


def write_tar(path, examples):
    """Writes {key: {ending: content}} as a tar file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, members in examples.items():
            for ending, content in members.items():
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return str(path)


def write_tars(folder, shards):
    """Writes 00000.tar, …, one for each list of numbers; returns a pattern of braces."""
    for shard, numbers in enumerate(shards):
        examples = {f"{number:09d}": tar_example(number) for number in numbers}
        write_tar(folder / f"{shard:05d}.tar", examples)
    return f"{folder}/{{00000..{len(shards) - 1:05d}}}.tar"


def tfrecord_example(**features):
    """A serialised tf.train.Example of bytes and lists of bytes."""
    lists = {
        name: tf.train.Feature(
            bytes_list=tf.train.BytesList(value=value if isinstance(value, list) else [value])
        )
        for name, value in features.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=lists)).SerializeToString()


def write_tfrecord(path, records, compression=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path), compression) as writer:
        for record in records:
            writer.write(record)
    return str(path)


def write_tfrecords(folder, shards):
    """Writes 00000.tfrecord, …, one for each list of numbers; returns a glob."""
    for shard, numbers in enumerate(shards):
        records = [
            tfrecord_example(
                key=f"{number:09d}".encode(),
                jpg=picture(number),
                txt=caption(number).encode(),
                captions=[text.encode() for text in other_captions(number)],
            )
            for number in numbers
        ]
        write_tfrecord(folder / f"{shard:05d}.tfrecord", records)
    return f"{folder}/*.tfrecord"


def write_parquet(folder, shards, rows_per_group=4):
    """Writes train-00000.parquet, … with Hugging Face's columns; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    image_type = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    for shard, numbers in enumerate(shards):
        images = [{"bytes": picture(number), "path": f"{number}.jpg"} for number in numbers]
        table = pyarrow.table(
            {
                "image": pyarrow.array(images, image_type),
                "caption": [caption(number) for number in numbers],
                "captions": [other_captions(number) for number in numbers],
                "bare": [picture(number) for number in numbers],
            }
        )
        path = folder / f"train-{shard:05d}.parquet"
        pyarrow.parquet.write_table(table, path, row_group_size=rows_per_group)
    return str(folder)


class SmallPhotographs(tfds.core.GeneratorBasedBuilder):
    """Photographs with a caption, two others within `captions`, and the class of what they show."""

    VERSION = tfds.core.Version("1.0.0")
    # Found through importlib_resources, which tensorflow-datasets 4.9 does not install.
    code_path = None

    def __init__(self, *, numbers, **arguments):
        self._numbers = numbers
        super().__init__(**arguments)

    def _info(self):
        features = {
            "image": tfds.features.Image(),
            "caption": tfds.features.Text(),
            "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
            "label": tfds.features.ClassLabel(names=NAMES),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        for number in self._numbers:
            yield (
                number,
                {
                    "image": picture(number),
                    "caption": caption(number),
                    "captions": [{"text": text} for text in other_captions(number)],
                    "label": number % 3 if number else -1,  # which means: not told
                },
            )


def write_tfds(folder, numbers, *, file_format="tfrecord", shards=3):
    """Builds SmallPhotographs; returns "tfds:" and its folder."""
    builder = SmallPhotographs(numbers=numbers, data_dir=str(folder), file_format=file_format)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
    return f"tfds:{builder.data_path}"
