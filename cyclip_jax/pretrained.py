"""Any trained model, whoever wrote it: opened, made into a module, and used as a starting point."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from flax import nnx
from PIL import Image

from cyclip_jax import parallel
from cyclip_jax.checkpoint import restore_model
from cyclip_jax.data.tokenizers import create_tokenizer, vocabulary_of
from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute, write_atomically
from cyclip_jax.interop.folders import (
    IMAGE_SETTINGS,
    OUR_PREPROCESS,
    UNSEEN,
    Checkpoint,
    check_settings,
    other_resizing,
    read_checkpoint,
    settings_of,
    warn_of_guesses,
)
from cyclip_jax.interop.weights import fit, weights_of
from cyclip_jax.models.clip import normalise_images
from cyclip_jax.models.presets import abstract_model, sizes_in
from cyclip_jax.workdir import is_workdir, metrics_at, read_config, resolve_paths


def open_checkpoint(path, *, step=None):
    """Reads a trained model.

    Args:
      path: the workdir of a run, an export, a folder of open_clip or transformers, or a PyTorch or
        safetensors file.
      step: which checkpoint of a workdir; None is the newest.

    Returns:
      A Checkpoint (see interop/folders.py).

    Raises:
      UserError: what is not there, cannot be read, or is of another architecture.
    """
    path = absolute(path)
    if is_workdir(path):
        return _of_workdir(path, step)
    if step is not None:
        raise UserError(f"{path} is not the workdir of a run: it has no step {step} to choose")
    return read_checkpoint(path)


def load(path, *, step=None, **model):
    """See cyclip_jax.load."""
    checkpoint = completed(open_checkpoint(path, step=step), **model)
    settings = checkpoint.model
    if checkpoint.tokenizer is None:
        tokenize = _no_tokenizer(checkpoint)
    else:
        tokenize = tokenizer_of(checkpoint)
    return module_of(checkpoint), _preprocess(checkpoint, settings["image_size"]), tokenize


def completed(checkpoint, **model):
    """A checkpoint that lacks no setting: as given, as it says, or as in OpenAI's models."""
    known = checkpoint.model | model
    settings = {"quick_gelu": True, **known, **sizes_in(known)}
    warn_of_guesses(checkpoint, {name: settings[name] for name in UNSEEN if name not in known})
    return dataclasses.replace(
        checkpoint, model=settings, preprocess=OUR_PREPROCESS | checkpoint.preprocess
    )


def module_of(checkpoint):
    """The CLIP module of a completed checkpoint, in evaluation mode.

    Raises:
      UserError: its weights are not those of its model.
    """
    _, graphdef, tree = abstract_model(checkpoint.model)
    tree = jax.tree.map(jnp.asarray, fit(checkpoint.weights, tree, source=checkpoint.source))
    return nnx.merge(graphdef, tree["params"], tree["batch_stats"])


def verified(checkpoint):
    """A completed checkpoint with all weights that its model has, and no others.

    Raises:
      UserError: as `fit`.
    """
    *_, tree = abstract_model(checkpoint.model)
    weights = weights_of(fit(checkpoint.weights, tree, source=checkpoint.source))
    return dataclasses.replace(checkpoint, weights=weights)


def tokenizer_of(checkpoint):
    """The tokenizer of a completed checkpoint.

    Raises:
      UserError: it is none of ours, or its vocabulary is missing.
    """
    if checkpoint.tokenizer is None:
        raise UserError(f"{checkpoint.source} has a tokenizer that is not ours")
    arguments = dict(checkpoint.tokenizer)
    return create_tokenizer(
        arguments.pop("tokenizer"),
        vocab_size=checkpoint.model["vocab_size"],
        context_length=checkpoint.model["context_length"],
        **arguments,
    )


def starting_point(config, abstract, console):
    """The model that a run starts from, as config.init_from names it.

    Args:
      config: of the run; its model is the one to be filled.
      abstract: {"params": …, "batch_stats": …}, trees of jax.ShapeDtypeStruct with shardings.
      console: is told where the parameters come from.

    Returns:
      The same trees with global arrays.

    Raises:
      UserError: another model or tokenizer, everything that does not fit in one list.
    """
    checkpoint = open_checkpoint(config.init_from)
    tree = fit(checkpoint.weights, abstract, source=checkpoint.source)
    _warn_of_other_data(checkpoint, config.data)
    settings = {"quick_gelu": config.model.quick_gelu, **sizes_in(config.model)}
    check_settings(checkpoint, {name: settings[name] for name in UNSEEN})
    tokenizer = checkpoint.tokenizer
    if tokenizer is not None and tokenizer["tokenizer"] != config.data.tokenizer:
        raise UserError(
            f"{checkpoint.source} has the tokenizer {tokenizer['tokenizer']!r}; "
            "set config.data.tokenizer to it"
        )
    of_step = "" if checkpoint.step is None else f" of step {checkpoint.step}"
    console.say(f"starting from the parameters{of_step} of {config.init_from}")
    return parallel.place(tree, abstract)


def _warn_of_other_data(checkpoint, data):
    ours = OUR_PREPROCESS | {name: data[name] for name in (*IMAGE_SETTINGS, "keep_end_of_text")}
    told = checkpoint.preprocess | (checkpoint.tokenizer or {})
    for name in [name for name in told if name in ours]:
        value, here = told[name], ours[name]
        if np.any(np.asarray(value) != np.asarray(here)):
            logging.warning(
                "%s was trained with %s %s; this run has %s.", checkpoint.source, name, value, here
            )


def inherit_vocabulary(config, workdir):
    """Copies the vocabulary of config.init_from into the workdir of a run that names none.

    The embedding of a token is of use only where the token keeps its number.

    Raises:
      UserError: what the run starts from has no such vocabulary.
    """
    own = vocabulary_of(config.data, workdir)
    if config.init_from is None or config.data.vocabulary is not None or own is None:
        return
    if epath.Path(own).exists():
        return
    origin = absolute(config.init_from)
    if is_workdir(origin):
        tokenizer = _tokenizer_of(resolve_paths(read_config(origin), origin), origin)
    else:
        tokenizer = settings_of(origin).get("tokenizer")  # not its weights: they are read later
    if not tokenizer or tokenizer["tokenizer"] != config.data.tokenizer:
        raise UserError(
            f"{config.init_from} has no vocabulary of the tokenizer {config.data.tokenizer!r}; set "
            "config.data.tokenizer to its own, or config.data.vocabulary to its file"
        )
    try:
        write_atomically(own, epath.Path(tokenizer["vocabulary"]).read_bytes())
    except OSError as error:
        raise UserError(f"the vocabulary of {config.init_from} cannot be read: {error}") from error


def described_by(checkpoint, config):
    """A copy of a config with all that a checkpoint knows of its own model and data.

    Raises:
      UserError: a preprocessing or a tokenizer that we do not have.
    """
    config = config.copy_and_resolve_references()
    preprocess = _own_preprocess(checkpoint)
    with config.unlocked():
        config.model.update(checkpoint.model)
        for name in IMAGE_SETTINGS:
            if name in preprocess:
                config.data[name] = tuple(preprocess[name])
        if checkpoint.tokenizer is not None:
            config.data.update(checkpoint.tokenizer)
    return config


def _of_workdir(workdir, step):
    written = read_config(workdir)
    config = resolve_paths(written, workdir)
    # One device holds it, unless several processes have to restore together.
    devices = jax.devices()[: None if jax.process_count() > 1 else 1]
    whole = parallel.replicated(parallel.create_mesh(devices))
    *_, tree = abstract_model(config.model, sharding=whole)
    step, tree = restore_model(workdir, tree, step=step)
    model = {
        "name": config.model.name,
        "quick_gelu": config.model.quick_gelu,
        **sizes_in(config.model),
    }
    return Checkpoint(
        source=str(workdir),
        weights=weights_of(jax.device_get(tree)),
        model=model,
        tokenizer=_tokenizer_of(config, workdir),
        preprocess=OUR_PREPROCESS | {name: config.data[name] for name in IMAGE_SETTINGS},
        step=step,
        config=written,
        metrics=metrics_at(workdir, step),
    )


def _tokenizer_of(config, workdir):
    return {
        "tokenizer": config.data.tokenizer,
        "vocabulary": vocabulary_of(config.data, workdir),
        "keep_end_of_text": config.data.keep_end_of_text,
    }


def _own_preprocess(checkpoint):
    """The checkpoint's preprocessing; UserError where it resizes in a way that we do not have."""
    differing = [
        f"{name} {checkpoint.preprocess[name]!r} (ours is {OUR_PREPROCESS[name]!r})"
        for name in other_resizing(checkpoint)
    ]
    if differing:
        raise UserError(f"{checkpoint.source} wants its images with {' and '.join(differing)}")
    return checkpoint.preprocess


def _preprocess(checkpoint, size):
    wanted = _own_preprocess(checkpoint)

    def preprocess(images):
        """One picture or several -> normalised float32 [N, size, size, 3].

        Args:
          images: a path, an encoded file's bytes, a PIL image or uint8 [h, w, 3], or a list.
        """
        from cyclip_jax.data.images import resize_and_centre_crop  # TensorFlow: slow to import

        several = images if isinstance(images, list | tuple) else [images]
        if not several:
            raise UserError("there is no picture to prepare")
        pixels = [resize_and_centre_crop(_pixels(image), size).numpy() for image in several]
        return normalise_images(
            jnp.asarray(np.stack(pixels)), mean=wanted["image_mean"], std=wanted["image_std"]
        )

    return preprocess


def _pixels(image):
    """One picture of any kind as uint8 [h, w, 3]."""
    import tensorflow as tf

    from cyclip_jax.data.images import decode

    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise UserError(
                f"a picture is uint8 [height, width, 3], not {image.dtype} {list(image.shape)}"
            )
        return image
    try:
        return decode(image if isinstance(image, bytes) else epath.Path(image).read_bytes())
    except OSError as error:
        raise UserError(f"{image} cannot be read: {error}") from error
    except tf.errors.InvalidArgumentError as error:
        name = "the bytes given" if isinstance(image, bytes) else image
        raise UserError(f"{name} cannot be decoded as a picture: {error.message}") from error


def _no_tokenizer(checkpoint):
    def tokenize(texts):
        """Raises UserError: embedding images wants no tokenizer, so only its use is an error."""
        raise UserError(
            f"{checkpoint.source} has a tokenizer that is not ours: give the model token ids"
        )

    return tokenize
