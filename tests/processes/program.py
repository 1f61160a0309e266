"""What one process computes, or several together: `python -m tests.processes.program`.

Imported, it is the one process; the arguments are those of `distributed.join` and a folder, into
which each process writes what it got.
"""

import functools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cyclip_jax import evals, parallel
from cyclip_jax.data.bad_examples import BadExamples
from cyclip_jax.data.pipeline import train_batches
from cyclip_jax.data.sentences import SentenceBatches, read_sentences
from cyclip_jax.data.sources import create_source
from cyclip_jax.data.transform import Transform
from cyclip_jax.evals.flat import flattened
from cyclip_jax.losses import cyclip_loss
from cyclip_jax.models.clip import normalise_images, split_model
from cyclip_jax.runtime import distributed
from cyclip_jax.runtime.agreement import wait_for_all_processes
from cyclip_jax.training.configured_model import Model
from cyclip_jax.training.objective import Objective
from cyclip_jax.training.step import make_train_step, state_sharding
from tests import tiny
from tests.pictures import COLOURS, SHAPES
from tests.training import test_second_views as of_views
from tests.training import test_sentences as of_sentences
from tests.training import test_step as of_step

ROWS, WIDTH = 16, 12
WORDS = ["a", *COLOURS, *SHAPES]


def everything(folder, devices):
    """All results in double precision, as {name: array}, and the examples read here.

    Args:
      folder: train.csv and asked.json, as test_equality.py writes them.
      devices: those of all processes.
    """
    asked = json.loads((pathlib.Path(folder) / "asked.json").read_text())
    with jax.enable_x64(True):
        wait_for_all_processes()
        results = losses(devices)
        for name in asked["towers"]:
            wait_for_all_processes()
            results |= {f"{name} {key}": array for key, array in step(devices, name).items()}
        wait_for_all_processes()
        results |= results_of(asked["evaluations"], devices, batch_size=ROWS)
        wait_for_all_processes()
        batches, read = batches_of(folder, devices)
        return results | batches | sentences_of(folder, devices), sorted(read)


def rows_here(rows):
    """This process's part of an array of all rows."""
    here = len(rows) // jax.process_count()
    return rows[jax.process_index() * here :][:here]


def on_host(tree, mesh):
    """Global arrays as NumPy arrays, {path: array}."""
    whole = jax.jit(lambda tree: tree, out_shardings=parallel.replicated(mesh))(tree)
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(whole))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def losses(devices):
    """The loss, its metrics, and the gradients by both embeddings and the scale."""
    mesh = parallel.create_mesh(devices, fsdp=2)
    rng = np.random.default_rng(0)
    embeds = rng.normal(size=(2, ROWS, WIDTH))
    embeds /= np.linalg.norm(embeds, axis=-1, keepdims=True)
    embeds = parallel.to_global([rows_here(rows) for rows in embeds], mesh)
    loss = functools.partial(
        cyclip_loss, inmodal_weight=0.25, crossmodal_weight=0.5, mesh=mesh, chunk_size=3
    )
    result = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*embeds, 30.0)
    return on_host({"loss": result}, mesh)


def step(devices, tower):
    """A step of plain gradient descent, from a state that is split over the devices.

    It sees pairs, second views of them and sentences with dropout.
    """
    mesh = parallel.create_mesh(devices, fsdp=4)
    sizes = {"ResNet": {}, "ViT": of_step.VIT}[tower]
    state, graphdef = of_step.make_state(optax.identity(), "float64", perturb=0.1, **sizes)
    sharding = state_sharding(state, optax.identity(), mesh, min_size=100)
    train_step = make_train_step(
        graphdef,
        optax.identity(),
        lambda step: 1.0,
        normalise=functools.partial(normalise_images, dtype=jnp.float64),
        mesh=mesh,
        param_sharding=sharding.params,
        objective=Objective(
            **of_step.LOSS,
            sentences=of_sentences.SECTION,
            second_views={"views": ("image", "text")},
        ),
    )
    state = parallel.place(
        jax.tree.map(lambda leaf: leaf if is_key(leaf) else np.asarray(leaf), state),
        jax.tree.map(like, state, sharding),
    )
    batch = of_views.make_batch() | {"sentences": of_sentences.make_batch()["sentences"]}
    batch = {name: rows_here(rows) for name, rows in batch.items()}
    new_state, metrics = jax.jit(train_step, out_shardings=(sharding, parallel.replicated(mesh)))(
        state, parallel.to_global(batch, mesh)
    )
    return on_host(
        {"params": new_state.params, "statistics": new_state.batch_stats, "metrics": metrics}, mesh
    )


def is_key(leaf):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def like(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def encoders_of(devices, *, batch_size):
    """A small model in double precision, as evaluators see it."""
    config = tiny.get_config()
    config.batch_size = batch_size
    config.model.name, config.model.dtype = "ViT-tiny", "float64"
    config.model.vision_layers, config.model.vision_heads = 1, 1
    model = Model(config, parallel.create_mesh(devices))
    _, params, batch_stats = split_model(model.create())
    placed = parallel.place(
        jax.device_get({"params": params, "batch_stats": batch_stats}), model.abstract
    )
    return model.encoders(**placed, tokenize=tokenize)


def results_of(settings, devices, *, batch_size):
    """All numbers of evaluations by the small model."""
    evaluators = evals.create_evaluators(settings)
    encoders = encoders_of(devices, batch_size=batch_size)
    return flattened(evals.evaluate(evaluators, encoders, directory=None))


def tokenize(texts):
    """Ids of the known words, others as one; 63 ends a text."""
    tokens = np.zeros((len(texts), 8), np.int32)
    for row, text in zip(tokens, texts, strict=True):
        words = [word.strip(".") for word in text.split()][:7]
        row[: len(words)] = [WORDS.index(word) + 1 if word in WORDS else 40 for word in words]
        row[len(words)] = 63
    return tokens


class Recording:
    """A source that remembers which of its examples were read."""

    def __init__(self, source):
        self._source, self.indices = source, set()

    def __len__(self):
        return len(self._source)

    def __getattr__(self, name):
        return getattr(self._source, name)

    def read(self, index):
        self.indices.add(int(index))
        return self._source.read(index)


def batches_of(folder, devices):
    """The global batches of a shuffled epoch; and which examples this process reads in order."""
    mesh = parallel.create_mesh(devices)
    source = Recording(
        create_source("csv", str(pathlib.Path(folder) / "train.csv"), config_key="data.train")
    )
    found = {}
    for shuffle in (True, False):
        source.indices.clear()
        batches = train_batches(
            source,
            tokenize,
            batch_size=8,
            image_size=32,
            seed=3,
            position=None,
            bad_examples=BadExamples(pathlib.Path(folder) / "none.jsonl", 0.0, len(source)),
            shuffle=shuffle,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            second_transform=Transform(policy="autoaugment"),
        )
        for number in range(len(source) // 8):
            batch, _ = next(batches)
            name = f"batch {number}, {'shuffled' if shuffle else 'in order'}"
            found |= on_host({name: parallel.to_global(batch, mesh)}, mesh)
        batches.close()
    return found, source.indices  # unshuffled, what is read ahead is the same again


def sentences_of(folder, devices):
    """The global batches of sentences of some steps."""
    mesh = parallel.create_mesh(devices)
    captions = create_source(
        "csv", str(pathlib.Path(folder) / "train.csv"), config_key="data.train"
    ).captions
    sentences = read_sentences("captions", 1, captions=captions, wordnet=iter, max_bad_share=0.0)
    split = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    batches = SentenceBatches(sentences, tokenize, batch_size=8, seed=3, **split)
    return {
        f"sentences {step}": on_host(parallel.to_global(batches(step), mesh), mesh)["['sentences']"]
        for step in (0, 4)
    }


def main(folder, address, count, index):
    """Computes all of it together with the other processes."""
    distributed.join(address, int(count), int(index), heartbeat_timeout=20)
    results, read = everything(folder, jax.devices())
    np.savez(pathlib.Path(folder) / f"{index}.npz", read=read, **results)
    distributed.end(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
