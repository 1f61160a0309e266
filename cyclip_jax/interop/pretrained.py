"""Opens a trained model, whichever program wrote it, and makes a module of it."""

import copy
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jaxtyping import Array, Float, Int

from cyclip_jax import parallel
from cyclip_jax.data.preprocess import preprocessor
from cyclip_jax.data.text_windows import WindowedTokenizer
from cyclip_jax.data.tokenizers import Tokenizer, create_tokenizer, vocabulary_of
from cyclip_jax.errors import UserError
from cyclip_jax.interop.checkpoint import (
    IMAGE_SETTINGS,
    OUR_PREPROCESS,
    UNSEEN,
    Checkpoint,
    check_vocabulary,
    other_resizing,
    warn_of_guesses,
)
from cyclip_jax.interop.class_head import with_head_beside
from cyclip_jax.interop.folders import read_checkpoint
from cyclip_jax.interop.hub import located
from cyclip_jax.interop.weights import fit, fixed_weights, weights_of
from cyclip_jax.models.clip import CLIP
from cyclip_jax.models.presets import abstract_model, sizes_in
from cyclip_jax.runtime.sections import resolve_paths
from cyclip_jax.workdir.classes import classes_of
from cyclip_jax.workdir.config_json import is_workdir, read_config
from cyclip_jax.workdir.layout import CHECKPOINTS
from cyclip_jax.workdir.metrics import metrics_at, of_average, of_raw
from cyclip_jax.workdir.saved import read_meta


def open_checkpoint(
    path: str | os.PathLike[str], *, step: int | None = None, weights: str = "raw"
) -> Checkpoint:
    """Reads a trained model.

    Args:
      path: the workdir of a run, a checkpoint in it (WORKDIR/checkpoints/STEP), an export,
        a folder of open_clip or transformers, a PyTorch or safetensors file, or the name of a model
        on the Hugging Face Hub, such as hf-hub:user/name@revision.
      step: the step of the checkpoint in a workdir; None takes the newest.
      weights: "raw", or "average" for the average that a run kept of them (see config.average).

    Returns:
      A Checkpoint (see interop/checkpoint.py).

    Raises:
      UserError: the model does not exist, cannot be read, or is of another architecture.
    """
    path, step = workdir_and_step(path, step)
    if is_workdir(path):
        return _of_workdir(path, step, weights)
    if weights != "raw":
        raise UserError(
            f"{path} is not the workdir of a run, so that it has one kind of weights; leave out "
            f"--weights={weights}"
        )
    if step is not None:
        raise UserError(
            f"{path} is not the workdir of a run, so that it has no step {step} to choose; leave "
            "out the step"
        )
    return with_head_beside(read_checkpoint(path), path)


def workdir_and_step(
    path: str | os.PathLike[str], step: int | None
) -> tuple[epath.Path, int | None]:
    """Splits the path of a checkpoint in a workdir, such as RUN/checkpoints/60.

    Returns:
      (the workdir, the step). Any other path is returned as it is, made absolute, with `step`, and
      for a model on the Hub the folder to which it was fetched.

    Raises:
      UserError: the path names another step than `step`, or the model cannot be fetched.
    """
    path = located(path)
    if path.name == CHECKPOINTS and is_workdir(path.parent):
        return path.parent, step
    is_step = path.name.isdigit() and path.parent.name == CHECKPOINTS
    if not is_step or not is_workdir(path.parent.parent):
        return path, step
    named = int(path.name)
    if step not in (None, named):
        raise UserError(f"{path} is the checkpoint of step {named}; leave out the step {step}")
    return path.parent.parent, named


def load(
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    text_windows: bool = False,
    **model: Any,
) -> tuple[
    CLIP, Callable[[Any], Float[Array, "n h w 3"]], Callable[[Any], Int[np.ndarray, "n ..."]]
]:
    """Does what `cyclip_jax.load` documents."""
    checkpoint = completed(open_checkpoint(path, step=step), **model)

    def tokenize(texts):
        """Raises the UserError of `tokenizer_of`: who embeds only images needs no tokenizer."""
        return tokenizer_of(checkpoint)(texts)

    if checkpoint.tokenizer is not None:
        tokenizer = tokenizer_of(checkpoint)
        tokenize = WindowedTokenizer(tokenizer) if text_windows else tokenizer
    wanted = _own_preprocess(checkpoint)
    preprocess = preprocessor(
        checkpoint.model["image_size"],
        mean=wanted["image_mean"],
        std=wanted["image_std"],
        resize_mode=wanted["resize_mode"],
    )
    return module_of(checkpoint), preprocess, tokenize


def completed(checkpoint: Checkpoint, **model: Any) -> Checkpoint:
    """Returns a checkpoint that has every setting.

    Args:
      checkpoint: a Checkpoint. A setting that nothing tells is taken to be that of OpenAI's models.
      model: settings that replace those of the checkpoint.
    """
    known = checkpoint.model | model
    settings = {"quick_gelu": True, **known, **sizes_in(known)}
    warn_of_guesses(checkpoint, {name: settings[name] for name in UNSEEN if name not in known})
    return dataclasses.replace(
        checkpoint, model=settings, preprocess=OUR_PREPROCESS | checkpoint.preprocess
    )


def module_of(checkpoint: Checkpoint) -> CLIP:
    """Makes the CLIP module of a completed checkpoint, in evaluation mode.

    Raises:
      UserError: the weights do not fit the model.
    """
    _, graphdef, tree = abstract_model(checkpoint.model)
    tree = jax.tree.map(jnp.asarray, fit(checkpoint.weights, tree, source=checkpoint.source))
    return nnx.merge(graphdef, tree["params"], tree["batch_stats"])


def verified(checkpoint: Checkpoint) -> Checkpoint:
    """Returns a completed checkpoint with all the weights that its model has, and no others.

    Raises:
      UserError: the weights do not fit the model.
    """
    *_, tree = abstract_model(checkpoint.model)
    weights = weights_of(fit(checkpoint.weights, tree, source=checkpoint.source))
    return dataclasses.replace(checkpoint, weights=weights | fixed_weights(checkpoint.model))


def tokenizer_of(checkpoint: Checkpoint) -> Tokenizer:
    """Makes the tokenizer of a completed checkpoint.

    Raises:
      UserError: the tokenizer is not ours, or its vocabulary is missing.
    """
    if checkpoint.tokenizer is None:
        raise UserError(
            f"{checkpoint.source} has a tokenizer that is not ours; load the model in Python and "
            "give it token ids"
        )
    arguments = dict(checkpoint.tokenizer)
    tokenizer = create_tokenizer(
        arguments.pop("tokenizer"),
        vocab_size=checkpoint.model["vocab_size"],
        context_length=checkpoint.model["context_length"],
        **arguments,
    )
    check_vocabulary(checkpoint, tokenizer)
    return tokenizer


def described_by(checkpoint: Checkpoint, config: Any) -> Any:
    """Returns a copy of a config with all that a checkpoint tells of its model and data.

    Raises:
      UserError: the checkpoint needs a preprocessing that we do not have.
    """
    config = copy.deepcopy(config)  # whose fields can still be set on a command line
    preprocess = _own_preprocess(checkpoint)
    with config.unlocked():
        config.model.update(checkpoint.model)
        for name in IMAGE_SETTINGS:
            if name in preprocess:
                value = preprocess[name]
                config.data[name] = value if isinstance(value, str) else tuple(value)
        told = dict(checkpoint.tokenizer or {})
        if told and told["tokenizer"] == config.data.tokenizer and told["vocabulary"] is None:
            del told["vocabulary"]  # CLIP's own, of which the config may name the file
        config.data.update(told)
    return config


def _of_workdir(workdir, step, weights):
    from cyclip_jax.workdir.checkpoints import AVERAGE, restore_model  # Orbax: slow to import

    written: Any = read_config(workdir)
    is_average = weights == AVERAGE
    if is_average and written.average.kind == "none":
        raise UserError(
            f"{workdir} kept no average of its weights, as its config.average.kind is 'none'; "
            "leave out --weights=average"
        )
    config = resolve_paths(written, workdir)
    # One device holds the model, unless several processes have to restore it together.
    devices = jax.devices()[: None if jax.process_count() > 1 else 1]
    whole = parallel.replicated(parallel.create_mesh(devices))
    *_, tree = abstract_model(config.model, sharding=whole)
    step, tree = restore_model(workdir, tree, step=step, item=AVERAGE if is_average else "model")
    metrics = metrics_at(workdir, step)
    model = {
        "name": config.model.name,
        "quick_gelu": config.model.quick_gelu,
        **sizes_in(config.model),
        **({"logit_bias": True} if config.model.logit_bias else {}),
        **({} if config.model.num_classes is None else {"num_classes": config.model.num_classes}),
    }
    return Checkpoint(
        source=str(workdir),
        weights=weights_of(jax.device_get(tree)) | fixed_weights(model),
        model=model,
        tokenizer=tokenizer_settings(config, workdir),
        preprocess=OUR_PREPROCESS | {name: config.data[name] for name in IMAGE_SETTINGS},
        vocabulary_sum=read_meta(workdir, step).get("vocabulary_sum"),  # older ones lack it
        step=step,
        config=written,
        classes=classes_of(workdir),
        metrics=of_average(metrics) if is_average else of_raw(metrics),
    )


def tokenizer_settings(config: Any, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the settings of a run's tokenizer as a Checkpoint has them."""
    return {
        "tokenizer": config.data.tokenizer,
        "vocabulary": vocabulary_of(config.data, workdir),
        "keep_end_of_text": config.data.keep_end_of_text,
    }


def _own_preprocess(checkpoint):
    """Returns the preprocessing; raises UserError if it resizes in a way that we do not have."""
    differing = [
        f"{name} {checkpoint.preprocess[name]!r} (ours is {OUR_PREPROCESS[name]!r})"
        for name in other_resizing(checkpoint)
    ]
    if differing:
        raise UserError(
            f"{checkpoint.source} wants its images with {' and '.join(differing)}; choose another "
            "model"
        )
    return checkpoint.preprocess
