"""What a config asks for: the training data, its batches, and the tokenizer."""

import jax
from etils import epath

from cyclip_jax.data import tokenizers
from cyclip_jax.data.pipeline import BadExamples, steps_per_epoch, train_batches
from cyclip_jax.data.sources import Mixture, create_mixture, create_source
from cyclip_jax.errors import UserError
from cyclip_jax.workdir import layout

# How the data is read, beside where it lies: config.data's fields by their own names.
_SOURCE_SETTINGS = ("image_key", "caption_key", "caption_weights", "templates", "delimiter")
_TRANSFORM_SETTINGS = (
    "augmentation",
    "colour_jitter",
    "crop_scale",
    "decoder",
    "horizontal_flip",
    "max_pixels",
    "policy",
)


def open_source(config):
    """Opens the training data, or says in one sentence what is wrong with it."""
    data = config.data
    settings = {name: data[name] for name in _SOURCE_SETTINGS}
    # A window's neighbours are read together; the next window's are there before it ends.
    settings["kept_examples"] = 2 * (data.shuffle_window or 0)
    if data.source == "mixture":
        source = create_mixture(data.mixture, settings)
    else:
        source = create_source(data.source, data.train, config_key="config.data.train", **settings)
    steps_per_epoch(len(source), config.batch_size)
    return source


def open_bad_examples(config, workdir, source, *, position):
    """What counts this process's bad examples from `position` on, in a file of its own."""
    path = epath.Path(workdir) / layout.bad_examples(jax.process_index(), jax.process_count())
    return BadExamples(path, config.data.max_bad_share, len(source), position)


def open_batches(config, source, tokenizer, bad_examples, *, image_size, position):
    """This process's rows of the batches from `position` on, see `train_batches`."""
    data = config.data
    return train_batches(
        source,
        tokenizer,
        batch_size=config.batch_size,
        image_size=image_size,
        seed=config.seed,
        position=position,
        shuffle=data.shuffle,
        shuffle_window=data.shuffle_window,
        bad_examples=bad_examples,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        **{name: data[name] for name in _TRANSFORM_SETTINGS},
    )


def check_continued(config, source, meta):
    """Raises UserError where a run cannot go on in its data from where a checkpoint left it.

    Args:
      source: the training data as it is now.
      meta: the checkpoint's; those from before a field was saved pass.
    """
    trained_on = meta.get("dataset_size", len(source))
    if trained_on != len(source):
        raise UserError(
            f"the run has trained on {trained_on} examples, and there are {len(source)} now, so "
            "that it cannot go on where it was; bring back the data, or start in a new --workdir "
            "with --config.init_from=WORKDIR"
        )
    batch_size = meta["config"]["batch_size"]
    has_own_order = isinstance(source, Mixture) or config.data.shuffle_window is not None
    if has_own_order and batch_size != config.batch_size:
        raise UserError(
            f"the run began with config.batch_size={batch_size}, on which the order of a mixture "
            f"and of data.shuffle_window depends; set it to that, not {config.batch_size}"
        )


def run_length(config, examples):
    """Total steps of a run, from total_steps or num_epochs.

    Raises:
      UserError: both are set, or neither.
    """
    if (config.total_steps is None) == (config.num_epochs is None):
        raise UserError("set exactly one of config.total_steps and config.num_epochs")
    if config.total_steps is not None:
        return config.total_steps
    return config.num_epochs * steps_per_epoch(examples, config.batch_size)


def open_tokenizer(config, workdir, sizes, source=None):
    """The run's tokenizer; a SentencePiece model that is not named is trained on the captions.

    Args:
      config: the run's.
      workdir: where a model trained here is kept, as tokenizer.model.
      sizes: the model's, with vocab_size and context_length.
      source: the training data, or None where only a trained model will do.

    Raises:
      UserError: no vocabulary, or one of another size than the model's.
    """
    vocabulary = tokenizers.vocabulary_of(config.data, workdir)
    is_own = vocabulary is not None and config.data.vocabulary is None
    if is_own and source is not None and not epath.Path(vocabulary).exists():
        tokenizers.train_sentencepiece(
            source.captions(), vocab_size=sizes["vocab_size"], output=vocabulary
        )
    return tokenizers.create_tokenizer(
        config.data.tokenizer,
        vocabulary=vocabulary,
        vocab_size=sizes["vocab_size"],
        context_length=sizes["context_length"],
        keep_end_of_text=config.data.keep_end_of_text,
    )
