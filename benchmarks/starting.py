"""Maps where CyCLIP begins to learn and where it stands still: batch × λ × warm-up × tower.

    python -m benchmarks.starting --output=/tmp/starting [--towers=ViT-tiny] [--batches=32,128]

Small towers see the quickstart's training drawings, 32 pixels wide and not augmented, for STEPS
steps with its optimiser. A cell of the map is such a run. Both cyclic terms have the weight λ, with
the published factor 1/N, and either from the first step on or grown in over WARMUP steps. A run is
judged by what it stands at in the mean of its LAST steps: the contrastive term over log N, which is
its value for equal embeddings; and the effective rank of the embeddings, 1 where they are equal.
Beside them stands the mean recall of drawings that it has not seen.

Each run is a line of runs.jsonl, and a run that has its line is not run again. starting.png and
starting.svg show the map. It needs the extra `quickstart`.
"""

import argparse
import csv
import functools
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from PIL import Image

from benchmarks.report import numbers
from configs import drawings
from cyclip_jax.data import emoji
from cyclip_jax.data.tokenizers import create_tokenizer, train_sentencepiece
from cyclip_jax.losses import contrastive_loss, cyclic_consistency
from cyclip_jax.losses.rank import embedding_rank
from cyclip_jax.models.clip import split_model, unit_norm
from cyclip_jax.models.presets import create_model
from cyclip_jax.training.optimizer import Optimizer

TOWERS = ("ViT-tiny", "RN-tiny")
BATCHES = (32, 128, 512)
WEIGHTS = (0.0, 0.05, 0.25, 1.0)
STEPS, WARMUP, LAST = 300, 150, 20
IMAGE_SIZE, VOCAB_SIZE, CONTEXT_LENGTH = 32, 512, 16


def load(folder):
    """{split: (images float32 [n, h, w, 3], tokens int32 [n, L])} of the quickstart's drawings."""
    emoji.build(folder, image_size=IMAGE_SIZE)
    read = {}
    for split in ("train", "new_drawings"):
        with (folder / emoji.CSV_NAMES[split]).open(encoding="utf-8", newline="") as file:
            read[split] = [(row["image"], row["caption"]) for row in csv.DictReader(file)]
    vocabulary = folder / "tokenizer.model"
    if not vocabulary.exists():
        captions = (caption for _, caption in read["train"])
        train_sentencepiece(captions, vocab_size=VOCAB_SIZE, output=str(vocabulary))
    tokenize = create_tokenizer(
        "sentencepiece",
        vocabulary=vocabulary,
        vocab_size=VOCAB_SIZE,
        context_length=CONTEXT_LENGTH,
    )
    return {
        split: (
            np.stack([np.asarray(Image.open(folder / path), np.float32) for path, _ in rows])
            / 127.5
            - 1,
            np.asarray(tokenize([caption for _, caption in rows])),
        )
        for split, rows in read.items()
    }


def embedded(model, images, tokens):
    """Unit-norm embeddings of both towers."""
    return unit_norm(model.encode_image(images)), unit_norm(model.encode_text(tokens))


def make_run(tower, batch_size, data):
    """Compiles the runs of a tower and a batch: function (seed, λ, warm-up) -> {name: number}."""
    config = drawings.get_config().optimizer
    images, tokens = map(jnp.asarray, data["train"])
    rate = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    optimizer = optax.chain(
        Optimizer(**config).transformation(), optax.scale_by_learning_rate(rate)
    )

    def create(seed):
        sizes = {"image_size": IMAGE_SIZE, "vocab_size": VOCAB_SIZE}
        return split_model(create_model(tower, rngs=nnx.Rngs(seed), **sizes))

    graphdef, *_ = create(0)

    def loss(params, statistics, rows, weight):
        model = nnx.merge(graphdef, params, statistics, copy=True)
        pairs = embedded(model, images[rows], tokens[rows])
        contrastive, _ = contrastive_loss(*pairs, jnp.exp(params["logit_scale"]))
        cyclic = sum(cyclic_consistency(*pairs)) / batch_size
        rank = functools.reduce(jnp.minimum, map(embedding_rank, pairs))
        _, _, statistics = split_model(model)
        return contrastive + weight * cyclic, (statistics, contrastive, rank)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, rows, weight):
        params, statistics, optimizer_state = state
        gradient = jax.grad(loss, has_aux=True)
        gradients, (statistics, *told) = gradient(params, statistics, rows, weight)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return (optax.apply_updates(params, updates), statistics, optimizer_state), told

    @jax.jit
    def judge(params, statistics):
        model = nnx.merge(graphdef, params, statistics, copy=True)
        model.eval()
        return mean_recall(*embedded(model, *map(jnp.asarray, data["new_drawings"])))

    def one(seed, weight, warmup):
        _, params, statistics = create(seed)
        order = np.random.default_rng(seed)
        epochs = -(-STEPS * batch_size // len(images))
        drawn = np.concatenate([order.permutation(len(images)) for _ in range(epochs)])
        rows = drawn[: STEPS * batch_size].reshape(STEPS, batch_size)
        state, told = (params, statistics, optimizer.init(params)), []
        for number, of_step in enumerate(rows, start=1):
            grown = weight * min(1.0, number / max(warmup, 1))
            state, numbers_of_step = step(state, of_step, grown)
            told.append(numbers_of_step)
        contrastive, rank = np.mean(told[-LAST:], axis=0)
        recall = judge(*state[:2])
        share = float(contrastive / np.log(batch_size))
        return {"share_of_log_n": share, "rank": float(rank), "mean_recall": float(recall)}

    return one


def mean_recall(image_embeds, text_embeds):
    """Mean of the recalls at 1, 5 and 10 in both directions; drawings have different captions."""
    similarities = image_embeds @ text_embeds.T
    ranks = [
        jnp.sum(matrix > jnp.diagonal(matrix)[:, None], axis=1)
        for matrix in (similarities, similarities.T)
    ]
    return jnp.mean(jnp.stack([jnp.mean(rank < k) for rank in ranks for k in (1, 5, 10)]))


def cells(towers, batches, weights, seeds):
    """Yields the runs; without a weight there is nothing to grow in."""
    for cell in itertools.product(towers, batches, seeds, weights, (0, WARMUP)):
        *_, weight, warmup = cell
        if weight or not warmup:
            yield dict(zip(("tower", "batch_size", "seed", "weight", "warmup"), cell, strict=True))


def read_lines(path):
    """The lines of runs.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def draw(lines, folder):
    """Writes the map: of each tower, without and with warm-up, batches beside weights."""
    towers = sorted({line["tower"] for line in lines})
    batches = sorted({line["batch_size"] for line in lines})
    weights = sorted({line["weight"] for line in lines})
    figure, axes = plt.subplots(
        len(towers), 2, figsize=(9, 0.8 + 2.4 * len(towers)), squeeze=False, layout="constrained"
    )
    for (row, tower), (column, warmup) in itertools.product(enumerate(towers), enumerate((0, 1))):
        shares = np.full((len(weights), len(batches)), np.nan)
        of = axes[row, column]
        for (i, weight), (j, batch) in itertools.product(enumerate(weights), enumerate(batches)):
            found = [
                line
                for line in lines
                if (line["tower"], line["batch_size"], line["weight"]) == (tower, batch, weight)
                and bool(line["warmup"]) == bool(warmup and weight)
            ]
            if found:
                shares[i, j] = np.mean([line["share_of_log_n"] for line in found])
                rank, recall = (
                    np.mean([line[key] for line in found]) for key in ("rank", "mean_recall")
                )
                colour = "white" if shares[i, j] > 0.75 else "black"
                text = f"{shares[i, j]:.2f}\nrank {rank:.3g}\nrecall {100 * recall:.1f} %"
                of.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
        picture = of.imshow(shares, vmin=0, vmax=1, cmap="viridis_r", aspect="auto", origin="lower")
        of.set_xticks(range(len(batches)), [f"{batch:,}" for batch in batches])
        of.set_yticks(range(len(weights)), [f"{weight:g}" for weight in weights])
        of.set(xlabel="pairs in a batch", ylabel="λ of both terms")
        when = f"grown in over {WARMUP} steps" if warmup else "whole from the first step"
        of.set_title(f"{tower}, terms {when}", fontsize=9)
    figure.colorbar(picture, ax=axes, label=f"contrastive term / log N after {STEPS} steps")
    for ending in ("png", "svg"):
        figure.savefig(folder / f"starting.{ending}", dpi=150)
    plt.close(figure)


def main(arguments=None):
    """Runs what is missing, and draws the map."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--towers", type=lambda text: text.split(","), default=TOWERS)
    parser.add_argument("--batches", type=numbers, default=BATCHES)
    parser.add_argument("--weights", type=lambda text: [*map(float, text.split(","))])
    parser.add_argument("--seeds", type=numbers, default=(0,))
    args = parser.parse_args(arguments)
    path = args.output / "runs.jsonl"
    data = load(args.output / "data")
    for key, runs in itertools.groupby(
        cells(args.towers, args.batches, args.weights or WEIGHTS, args.seeds),
        key=lambda cell: (cell["tower"], cell["batch_size"]),
    ):
        one = None
        for cell in runs:
            if any(cell.items() <= line.items() for line in read_lines(path)):
                continue
            one = one or make_run(*key, data)
            line = cell | one(cell["seed"], cell["weight"], cell["warmup"])
            print(json.dumps(line), flush=True)
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
    draw(read_lines(path), args.output)


if __name__ == "__main__":
    main()
