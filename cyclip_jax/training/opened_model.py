"""A trained model, whichever program wrote it, as the encoders that evaluators see."""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from cyclip_jax import defaults, parallel
from cyclip_jax.data.settings import Data, open_tokenizer
from cyclip_jax.data.text_windows import WindowedTokenizer
from cyclip_jax.evals.encoders import Encoders
from cyclip_jax.interop.checkpoint import Checkpoint, check_vocabulary
from cyclip_jax.interop.pretrained import described_by, open_checkpoint, workdir_and_step
from cyclip_jax.interop.weights import fit
from cyclip_jax.runtime.loop import set_matmul_precision
from cyclip_jax.runtime.sections import constructed, resolve_paths
from cyclip_jax.runtime.setting_types import check_type
from cyclip_jax.training.configured_model import Model


@dataclasses.dataclass(frozen=True)
class OpenedModel:
    """A trained model, ready to embed.

    Attributes:
      encoders: what embeds by it.
      with_weights: function from other weights of it, {OpenAI name: array}, to what embeds by them.
      checkpoint: where it comes from.
      config: the run's own config with its paths resolved, or the one that stands for it.
      logit_scale: the factor of its similarities.
      logit_bias: what the sigmoid loss adds to them, or None.
    """

    encoders: Encoders
    with_weights: Callable[[Mapping[str, np.ndarray]], Encoders]
    checkpoint: Checkpoint
    config: Any
    logit_scale: float
    logit_bias: float | None


def open_model(
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    weights: str = "raw",
    config: Any = None,
    batch_size: int | None = None,
    text_windows: bool = False,
    alone: bool = False,
) -> OpenedModel:
    """Opens a trained model on all devices.

    Args:
      path: anything that `open_checkpoint` takes.
      step, weights: as there.
      config: stands for the config that a model from elsewhere does not have; it gives the batch
        size, and what nothing says of the model. None are the defaults.
      batch_size: rows that are embedded at once; None is the config's.
      text_windows: whether a text too long for the model is embedded as the mean of its windows.
      alone: whether each of several processes has the model on its own devices and embeds what it
        is given, whatever the others do.

    Raises:
      UserError: there is no such model, or it cannot embed.
    """
    path, step = workdir_and_step(path, step)
    opened = open_checkpoint(path, step=step, weights=weights)
    if opened.config is not None:
        config = resolve_paths(opened.config, path)
    else:
        config = described_by(opened, defaults.get_config() if config is None else config)
    if batch_size is not None:
        config = config.copy_and_resolve_references().unlock()
        config.batch_size = batch_size
    data = constructed(Data, config.data, "config.data")
    set_matmul_precision(config.matmul_precision)
    model = Model(config, _mesh_for(config.batch_size, alone))
    tokenizer = open_tokenizer(data, path, model.sizes)
    check_vocabulary(opened, tokenizer)
    tokenize = WindowedTokenizer(tokenizer) if text_windows else tokenizer
    bias = opened.weights.get("logit_bias")

    def encoders(weights):
        tree = fit(weights, model.abstract, source=opened.source)
        tree = parallel.place(tree, model.abstract)
        made = model.encoders(**tree, tokenize=tokenize, classes=opened.classes)
        return dataclasses.replace(made, process_index=0, process_count=1) if alone else made

    return OpenedModel(
        encoders(opened.weights),
        encoders,
        opened,
        config,
        logit_scale=math.exp(float(opened.weights["logit_scale"])),
        logit_bias=None if bias is None else float(bias),
    )


def _mesh_for(batch_size, alone):
    """A mesh of as many devices as a batch divides among; the run may have had others."""
    check_type("config.batch_size", batch_size, int)
    devices = jax.local_devices() if alone else jax.devices()
    # Of several processes none may be left without a device.
    is_one = alone or jax.process_count() == 1
    used = math.gcd(batch_size, len(devices)) if is_one else None
    mesh = parallel.create_mesh(devices[:used])
    parallel.check_batch_size(batch_size, mesh)
    return mesh
