"""Small collections that no model made: 24 pictures of shapes, embedded by encoders with a known
answer."""

import csv

import numpy as np
from etils import epath

from cyclip_jax.data.sources import create_source
from cyclip_jax.embeddings import layout
from cyclip_jax.embeddings.collection import Collection
from cyclip_jax.embeddings.nearest import exact
from cyclip_jax.embeddings.write import picture_sum
from tests.evals.fakes import fake_encoders
from tests.pictures import write_pairs

HOSTILE = '</script><script>alert("1")</script><img src=x onerror=alert(2)>'


def write_shard(folder, names, captions, images, texts, sums, number=0):
    """The files of one shard."""
    columns = {
        "image_path": names,
        "caption": captions,
        "example": np.arange(len(names)),
        "picture_sum": sums,
    }
    for kind, rows in ((layout.IMAGES, images), (layout.TEXTS, texts)):
        if rows is not None:
            path = layout.shard_path(folder, kind, number, 1)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(layout.rows_as_bytes(np.asarray(rows, np.float16)))
    path = layout.shard_path(folder, layout.METADATA, number, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(layout.table_as_bytes(columns))


def write_collection(folder, hostile=None):
    """Writes a collection below `folder`; a hostile caption takes the place of the last one.

    Returns:
      (Collection, path of its CSV).
    """
    data = write_pairs(folder / "data")
    with open(data, newline="") as file:
        header, *rows = csv.reader(file)
    if hostile is not None:
        rows[-1][1] = hostile
        with open(data, "w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
    encoders = fake_encoders(1)
    names, captions = (list(column) for column in zip(*rows, strict=True))
    pictures = [(data.parent / name).read_bytes() for name in names]
    texts = np.concatenate([encoders.text_embeds([caption]) for caption in captions])
    images = np.eye(25, dtype=np.float32)[:24]  # its order is that of the CSV
    # Pictures of one colour are a little alike, and captions of one shape.
    images = images + 0.3 * np.eye(25, dtype=np.float32)[np.arange(24) % 4]
    texts = texts + 0.3 * np.eye(25, dtype=np.float32)[np.arange(24) // 4 * 4]
    images, texts = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, texts))
    place = folder / "embedded"
    sums = [picture_sum(picture) for picture in pictures]
    write_shard(epath.Path(place), names, captions, images, texts, sums)
    source = create_source("csv", str(data), config_key="--data")
    return Collection(layout.Embeddings(str(place)), exact, encoders, source), data
