"""What a config asks for: the training data, its batches, and the tokenizer."""

import jax
from etils import epath

from cyclip_jax.data import tokenizers
from cyclip_jax.data.pipeline import BadExamples, steps_per_epoch, train_batches
from cyclip_jax.data.sources import create_source
from cyclip_jax.errors import UserError


def open_source(config):
    """Opens the training data, or says in one sentence what is wrong with it."""
    source = create_source(
        config.data.source,
        config.data.train,
        config_key="config.data.train",
        image_key=config.data.image_key,
        caption_key=config.data.caption_key,
        delimiter=config.data.delimiter,
    )
    steps_per_epoch(len(source), config.batch_size)
    return source


def open_batches(config, workdir, source, tokenizer, *, image_size, position):
    """This process's rows of the batches from `position` on, see `train_batches`."""
    suffix = "" if jax.process_count() == 1 else f"_{jax.process_index()}"
    bad_examples = BadExamples(
        epath.Path(workdir) / f"bad_examples{suffix}.jsonl",
        config.data.max_bad_share,
        len(source),
    )
    return train_batches(
        source,
        tokenizer,
        batch_size=config.batch_size,
        image_size=image_size,
        seed=config.seed,
        position=position,
        shuffle=config.data.shuffle,
        augmentation=config.data.augmentation,
        crop_scale=config.data.crop_scale,
        colour_jitter=config.data.colour_jitter,
        bad_examples=bad_examples,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
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
