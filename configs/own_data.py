"""CyCLIP on small data of one's own: hundreds to some ten thousand pairs, on two cores or a GPU."""

import math
import re

from cyclip_jax import defaults
from cyclip_jax.data.sources import create_source
from cyclip_jax.errors import UserError
from cyclip_jax.files import absolute

SETTINGS = ("source", "image_key", "caption_key", "delimiter")  # that may follow the paths
EXAMPLE = "--config=configs/own_data.py:train.csv,val.csv"


def get_config(data=""):
    """Run with --config=configs/own_data.py:TRAIN or …:TRAIN,VALIDATION.

    TRAIN is anything that config.data.train may be, and so is VALIDATION. What the data need to be
    read stands behind them: …:train.csv,val.csv,caption_key=text. Length, batch and vocabulary
    follow from the number of pairs and from their captions.
    """
    train, validation, reading = _parsed(data)
    captions = _captions(train, reading)
    config = defaults.get_config()
    config.data.update(reading)
    config.data.train, config.data.validation = train, validation

    # A sixteenth of a small set, so that an epoch has some batches, and 8 to 128 pairs.
    config.batch_size = 2 ** min(max(int(math.log2(max(len(captions), 1) / 16)), 3), 7)
    # Thirty passes, but not so few steps that nothing can be learned in them.
    config.total_steps = max(30 * len(captions) // config.batch_size, 600)
    config.log_every_steps = 25
    config.eval_every_steps = config.checkpoint_every_steps = config.total_steps // 4

    config.model.name = "RN-tiny"
    config.model.vocab_size, config.model.context_length = _text_sizes(captions)
    config.data.tokenizer = "sentencepiece"
    config.data.augmentation = "random_resized_crop"
    config.data.crop_scale = (0.6, 1.0)

    # The cyclic terms are perfect where all embeddings are equal, and small data leave a young
    # model there. They grow in after it has begun to tell pairs apart.
    config.loss.cyclic_warmup_steps = config.total_steps // 2
    config.loss.cyclic_normalization = "batch_size_free"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = config.total_steps // 10
    config.optimizer.beta2 = 0.98
    config.optimizer.weight_decay = 0.2

    config.evals.val.gallery_captions = 8
    return config


def _parsed(data):
    """(TRAIN, VALIDATION or None, settings of the reading) of what follows the colon."""
    if data and absolute(data).exists():  # a path is that path, whatever commas it has
        return data, None, {}
    parts = re.split(r",(?![^{]*})", data)  # not within the braces of {a,b}.tar
    matches = [re.fullmatch(rf"({'|'.join(SETTINGS)})=(.*)", part) for part in parts]
    paths = [part for part, match in zip(parts, matches, strict=True) if match is None]
    if not all(paths) or not 1 <= len(paths) <= 2:
        raise UserError(f"name the pairs to train on, and perhaps others to evaluate on: {EXAMPLE}")
    train, validation = (*paths, None)[:2]
    return train, validation, {match[1]: match[2] for match in matches if match is not None}


def _captions(train, reading):
    """The first caption of every pair."""
    source, keys = reading.get("source", "auto"), {**reading, "source": None}
    del keys["source"]
    try:
        return create_source(source, train, config_key="config.data.train", **keys).captions()
    except UserError as error:
        raise UserError(
            f"{EXAMPLE},caption_key=text is how data are named here: {error}"
        ) from error


def _text_sizes(captions):
    """(vocab_size, context_length) for some captions."""
    texts = [caption.lower() for caption in captions]
    words = {word for text in texts for word in text.split()}
    characters = {character for text in texts for character in text}
    # A piece is a word where the vocabulary has it, and some four letters of a longer one.
    lengths = sorted(max(len(text.split()), len(text) // 4) for text in texts)
    longest = lengths[int(0.98 * (len(lengths) - 1))]
    return max(len(characters) + min(len(words), 8000), 256), min(max(longest + 2, 16), 77)
