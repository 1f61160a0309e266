"""Measures how long the page of `python -m cyclip_jax.search` takes to answer.

    python -m benchmarks.search
    python -m benchmarks.search --rows=1000000 --faiss=HNSW32

Rows are random, of 512 numbers, with captions of ten words. The model has the towers of --model
with random weights. Questions go over HTTP, one after the other: a new sentence each time, which
the model embeds; the neighbours of a row in both spaces; and a sentence among the captions with a
word.
"""

import argparse
import functools
import http.client
import itertools
import socket
import tempfile
import threading
import time
import urllib.parse

import jax
import numpy as np
from etils import epath

from benchmarks.report import table
from cyclip_jax import defaults, parallel
from cyclip_jax.embeddings import layout
from cyclip_jax.embeddings.collection import Collection
from cyclip_jax.embeddings.nearest import by_faiss, exact
from cyclip_jax.models.clip import split_model
from cyclip_jax.search import create_server
from cyclip_jax.training.configured_model import Model

DIM, SHARD = 512, 50_000
WORDS = [f"word{number}" for number in range(1000)]
COLUMNS = {
    "question": ("name", ""),
    "median, ms": ("median", ".0f"),
    "95th percentile, ms": ("high", ".0f"),
}


def write_rows(folder, count):
    """Random embeddings with random captions."""
    rng = np.random.default_rng(0)
    shards = -(-count // SHARD)
    for number in range(shards):
        size = min(SHARD, count - number * SHARD)
        for kind in (layout.IMAGES, layout.TEXTS):
            rows = rng.standard_normal((size, DIM), np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            path = layout.shard_path(folder, kind, number, shards)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(layout.rows_as_bytes(rows.astype(np.float16)))
        columns = {
            "image_path": [f"{number}_{row}.jpg" for row in range(size)],
            "caption": [" ".join(words) for words in rng.choice(WORDS, (size, 10))],
            "example": range(size),
            "picture_sum": [None] * size,
        }
        path = layout.shard_path(folder, layout.METADATA, number, shards)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(layout.table_as_bytes(columns))


def random_encoders(name):
    """The towers of a preset with random weights; a word is one token."""
    config = defaults.get_config()
    config.model.name, config.model.embed_dim, config.batch_size = name, DIM, 1
    config.model.context_length, config.model.vocab_size = 77, 49_408
    model = Model(config, parallel.create_mesh(jax.devices()[:1]))
    _, params, batch_stats = split_model(model.create())
    placed = parallel.place(
        jax.device_get({"params": params, "batch_stats": batch_stats}), model.abstract
    )

    def tokenize(texts):
        tokens = np.zeros((len(texts), 77), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            words = text.split()
            row[: len(words)] = [hash(word) % 40_000 for word in words]
            row[len(words)] = 49_407
        return tokens

    return model.encoders(**placed, tokenize=tokenize)


def ask(port, questions):
    """Seconds of each answer."""
    seconds = []
    for question in questions:
        begun = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/?" + urllib.parse.urlencode(question))
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status
        seconds.append(time.perf_counter() - begun)
    return seconds


def measure(rows, faiss, model, questions):
    with tempfile.TemporaryDirectory() as folder:
        write_rows(epath.Path(folder), rows)
        index = exact if faiss is None else functools.partial(by_faiss, factory=faiss)
        collection = Collection(layout.Embeddings(folder), index, random_encoders(model))
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        server, _ = create_server(collection, listening, title="rows")
        threading.Thread(target=server.run, daemon=True).start()
        rng = np.random.default_rng(1)
        sentences = (" ".join(rng.choice(WORDS, 8)) for _ in itertools.count())
        kinds = {
            "a sentence": lambda: {"text": next(sentences)},
            "neighbours of a row": lambda: {"like": int(rng.integers(rows))},
            "a sentence, with a word": lambda: {"text": next(sentences), "where": "word7 "},
        }
        found = []
        for name, question in kinds.items():
            ask(port, [question()])  # compiles
            seconds = 1000 * np.array(ask(port, [question() for _ in range(questions)]))
            high = np.percentile(seconds, 95)
            found.append({"name": name, "median": np.median(seconds), "high": high})
        return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--faiss", help="what faiss's index_factory makes")
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--questions", type=int, default=200)
    arguments = parser.parse_args()
    rows = measure(arguments.rows, arguments.faiss, arguments.model, arguments.questions)
    print(table(rows, COLUMNS))


if __name__ == "__main__":
    main()
