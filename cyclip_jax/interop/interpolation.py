"""Weights between those of two models of one architecture."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import numpy as np
from flax import nnx
from jaxtyping import UInt8

from cyclip_jax.data.sources import Source, create_source
from cyclip_jax.errors import UserError
from cyclip_jax.interop.checkpoint import Checkpoint
from cyclip_jax.interop.pretrained import completed, module_of, open_checkpoint, verified
from cyclip_jax.interop.weights import weights_of
from cyclip_jax.models.batch_norm import BatchNorm
from cyclip_jax.models.clip import normalise_images, split_model

# Pictures of a batch whose statistics are taken, and how many batches at most.
BATCH, BATCHES = 128, 100
_STATISTICS = (".running_mean", ".running_var")


def interpolated(first: str, second: str, *, alpha: float, data: str | None = None) -> Checkpoint:
    """A model with the weights (1 − α)·θ_0 + α·θ_1 (WiSE-FT, Wortsman et al. 2022, section 3).

    Args:
      first: the model with the weights θ_0, anything that `open_checkpoint` takes.
      second: the model with the weights θ_1.
      alpha: α, from 0 to 1.
      data: pictures on which BatchNorm's statistics are taken anew, named as config.data.train is;
        a model without BatchNorm needs none.

    Returns:
      A completed Checkpoint.

    Raises:
      UserError: the models differ in more than their weights, or statistics are wanted and there
        are no data.
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"--alpha={alpha} must be from 0, which is {first}, to 1, {second}")
    one, other = (verified(completed(open_checkpoint(path))) for path in (first, second))
    pictures = None if data is None else create_source("auto", data, config_key="--data")
    return between(one, other, alpha=alpha, pictures=pictures)


def between(
    one: Checkpoint, other: Checkpoint, *, alpha: float, pictures: Source | None
) -> Checkpoint:
    """The same of two checkpoints that are completed and verified.

    Args:
      one, other: with the weights θ_0 and θ_1.
      alpha: α, from 0 to 1.
      pictures: those on which BatchNorm's statistics are taken anew, where they differ.

    Raises:
      UserError: as `interpolated`.
    """
    _check_alike(one, other)
    weights = {
        # The sum in float64 rounds to a weight itself where both models have it.
        name: ((1 - alpha) * array.astype(float) + alpha * other.weights[name]).astype(array.dtype)
        for name, array in one.weights.items()
    }
    source = f"{one.source} and {other.source}"
    mixed = dataclasses.replace(
        one, source=source, weights=weights, step=None, config=None, metrics={}
    )
    # BatchNorm that was frozen has the statistics that it had.
    moved = any(
        name.endswith(_STATISTICS) and not np.array_equal(array, other.weights[name])
        for name, array in one.weights.items()
    )
    if not moved or alpha in (0, 1):
        return mixed
    if pictures is None:
        raise UserError(
            f"{one.source} and {other.source} have BatchNorm, and averages of its statistics are "
            "not those of averaged weights; name pictures to take them on with --data=PAIRS"
        )
    return dataclasses.replace(mixed, weights=weights | _statistics(mixed, pictures))


def _check_alike(one: Checkpoint, other: Checkpoint) -> None:
    """Raises UserError where two models differ in more than their weights."""
    told = [
        {
            **checkpoint.model,
            **{f"preprocess.{name}": value for name, value in checkpoint.preprocess.items()},
            "tokenizer": (checkpoint.tokenizer or {}).get("tokenizer"),
            "vocabulary": checkpoint.vocabulary_sum,
        }
        for checkpoint in (one, other)
    ]
    unknown = {"vocabulary"} if None in (told[0]["vocabulary"], told[1]["vocabulary"]) else set()
    differing = [
        f"{name} ({value!r} and {told[1][name]!r})"
        for name, value in told[0].items()
        if name not in {"name", *unknown} and _plain(value) != _plain(told[1][name])
    ]
    if differing:
        raise UserError(
            f"{one.source} and {other.source} differ in {', '.join(differing)}, so that there is "
            "nothing between their weights; choose two models of which one began as the other"
        )


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def _statistics(checkpoint, pictures):
    """{name: statistic} of BatchNorm: the means of those of batches, in training mode."""
    model = module_of(checkpoint)
    model.train()
    for _, module in nnx.iter_modules(model):
        if isinstance(module, BatchNorm):
            module.momentum = 0.0  # what is kept of a batch is then its own
    graphdef, params, batch_stats = split_model(model)
    colours = (tuple(checkpoint.preprocess[name]) for name in ("image_mean", "image_std"))
    of_batch = functools.partial(_of_batch, graphdef, *colours)
    found = [
        jax.device_get(of_batch(params, batch_stats, images))
        for images in _batches(
            pictures, checkpoint.model["image_size"], checkpoint.preprocess["resize_mode"]
        )
    ]
    if not found:
        raise UserError("--data has no picture that can be read; name others")
    mean_of = jax.tree.map(lambda *all_: np.mean(all_, axis=0, dtype=float), *found)
    mean_of = jax.tree.map(lambda array: array.astype(np.float32), mean_of)
    named = weights_of({"params": params, "batch_stats": mean_of})
    return {name: array for name, array in named.items() if name.endswith(_STATISTICS)}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))  # compiled once for all weights
def _of_batch(graphdef, mean, std, params, batch_stats, images):
    """BatchNorm's statistics of a batch, a nested dict."""
    model = nnx.merge(graphdef, params, batch_stats, copy=True)
    model.encode_image(normalise_images(images, mean=mean, std=std))
    return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def _batches(
    pictures: Source, image_size: int, resize_mode: str
) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
    """Whole batches of the first pictures that can be read, or one batch of fewer."""
    from cyclip_jax.data.pipeline import eval_batches  # TensorFlow: slow to import

    read = eval_batches(
        pictures,
        lambda captions: np.zeros((len(captions), 1), np.int32),  # the pictures alone
        batch_size=BATCH,
        image_size=image_size,
        resize_mode=resize_mode,
    )
    waiting = np.zeros((0, image_size, image_size, 3), np.uint8)
    count = 0
    for batch in read:
        waiting = np.concatenate([waiting, batch["images"][batch["mask"]]])
        if len(waiting) >= BATCH:
            yield waiting[:BATCH]
            waiting, count = waiting[BATCH:], count + 1
        if count == BATCHES:
            return
    if count == 0 and len(waiting):
        yield waiting
