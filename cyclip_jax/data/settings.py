"""The section config.data, which says what is read and how, and the functions that open it.

Whatever the section alone shows to be wrong is reported when it is constructed. TensorFlow is
imported only where data are opened.
"""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import jax
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Int

from cyclip_jax.data import tokenizers
from cyclip_jax.data.bad_examples import BadExamples
from cyclip_jax.data.order import Position, steps_per_epoch
from cyclip_jax.data.places import DataPath
from cyclip_jax.data.reading import Reading
from cyclip_jax.data.second_views import SecondViews
from cyclip_jax.data.sentences import SentenceSet
from cyclip_jax.data.sources import (
    DataSet,
    Mixture,
    Source,
    mixture_from_anywhere,
    parts_of_mixture,
)
from cyclip_jax.data.sources.kept import kept_sum
from cyclip_jax.data.sources.mixture import Weight
from cyclip_jax.data.transform import Transform, check_colours
from cyclip_jax.errors import UserError
from cyclip_jax.files import FilePath, Located, parse_json, write_json
from cyclip_jax.workdir import layout

_Part = TypeVar("_Part", Reading, Transform, SecondViews)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """config.data.

    Attributes:
      source: kind of the training data, a key of `SOURCES`, "auto" or "mixture".
      train: where the training data lie, or None.
      validation: where the validation data lie, or None.
      mixture: {name: settings} of the source "mixture" (see `parts_of_mixture`).
      kept: folder with a list of the examples of `train` that are trained on, or None.
      image_key, caption_key, caption_weights, templates, delimiter: see `Reading`.
      shuffle: whether each epoch has a random order of its own.
      shuffle_window: how many examples are mixed with one another; None mixes all.
      tokenizer, vocabulary, keep_end_of_text: see `create_tokenizer`.
      image_mean: mean of the RGB values in [0, 1], three numbers.
      image_std: standard deviation of the RGB values, three numbers.
      decoder, max_pixels, resize_mode, augmentation, crop_scale, horizontal_flip, policy,
        colour_jitter: see `Transform`.
      second_image, second_caption, second_caption_draws, negative_caption, negative_caption_key,
        negative_image_key, synonyms: see `SecondViews`.
      max_bad_share: share of unreadable examples above which the run stops.

    Raises:
      UserError: the settings alone show that something is wrong.
    """

    source: str
    train: DataPath | None
    validation: DataPath | None
    mixture: Annotated[Mapping[str, Mapping[str, Any]], Located(mixture_from_anywhere, Mapping)]
    kept: FilePath | None
    image_key: str | None
    caption_key: str | Sequence[str] | None
    caption_weights: Sequence[float] | None
    templates: Sequence[str]
    delimiter: str
    shuffle: bool
    shuffle_window: int | None
    tokenizer: str
    vocabulary: FilePath | None
    keep_end_of_text: bool
    image_mean: Sequence[float]
    image_std: Sequence[float]
    decoder: str
    max_pixels: int
    resize_mode: str
    augmentation: str
    crop_scale: Sequence[float]
    horizontal_flip: bool
    policy: str
    colour_jitter: float
    second_image: str
    second_caption: str
    second_caption_draws: str
    negative_caption: str
    negative_caption_key: str | None
    negative_image_key: str | None
    synonyms: FilePath | None
    max_bad_share: float

    def __post_init__(self) -> None:
        tokenizers.check_name(self.tokenizer)
        self._part(Reading)
        if self.kept is not None and self.source == "mixture":
            raise UserError(
                "config.data.kept is a list of examples of config.data.train, which a mixture does "
                "not read; name it with its part, as part(…, kept=FOLDER)"
            )
        self.second_views.transform(self.transform)
        check_colours("config.data", self.image_mean, self.image_std)

    @property
    def kept_examples(self) -> int:
        """How many examples are kept in memory.

        A window's neighbours are read together, and the next window's are read before it ends.
        """
        return 2 * (self.shuffle_window or 0)

    @property
    def reading(self) -> Reading:
        """How the examples are read."""
        return self._part(Reading)

    @property
    def transform(self) -> Transform:
        """What happens to a picture in training."""
        return self._part(Transform)

    @property
    def second_views(self) -> SecondViews:
        """What training sees of an example besides its picture and its caption."""
        return self._part(SecondViews)

    @property
    def name(self) -> str:
        """What the training data are called."""
        return " and ".join(self.mixture) if self.source == "mixture" else str(self.train)

    def training_sets(self) -> DataSet | dict[str, tuple[DataSet, Weight]]:
        """The training data, or the parts of a mixture with their weights, not opened yet.

        Raises:
          UserError: there are no training data, or their settings show that something is wrong.
        """
        if self.source == "mixture":
            return parts_of_mixture(self.mixture, self.reading)
        return DataSet(self.source, self.train, self.reading, "config.data.train", self.kept)

    def _part(self, part: type[_Part]) -> _Part:
        """The part of the settings that a smaller constructor takes, constructed by it."""
        return part(**{field.name: getattr(self, field.name) for field in dataclasses.fields(part)})


def open_source(data: Data, batch_size: int) -> Source | Mixture:
    """Opens the training data.

    Args:
      data: the run's settings.
      batch_size: rows of the global batch, of which the data must fill at least one.

    Raises:
      UserError: something is wrong with the data, or with the files that second views need.
    """
    sets = data.training_sets()
    data.second_views.caption()  # WordNet is missed before anything is compiled
    data.second_views.negative()
    if isinstance(sets, DataSet):
        source = sets.open()
    else:
        source = Mixture({name: (part.open(), weight) for name, (part, weight) in sets.items()})
    steps_per_epoch(len(source), batch_size)
    return source


def open_bad_examples(
    data: Data,
    workdir: str | os.PathLike[str],
    source: Source | Mixture,
    *,
    position: Position,
) -> BadExamples:
    """Opens the list of this process's bad examples, which lies in a file of its own.

    Args:
      data: the run's settings.
      workdir: the run's directory.
      source: the training data.
      position: the place in the data from which on bad examples are counted.
    """
    path = epath.Path(workdir) / layout.bad_examples(jax.process_index(), jax.process_count())
    return BadExamples(path, data.max_bad_share, len(source), position)


def open_batches(
    data: Data,
    source: Source | Mixture,
    tokenizer: Callable[[list[str]], np.ndarray],
    bad_examples: BadExamples,
    *,
    batch_size: int,
    seed: int,
    image_size: int,
    position: Position,
    labels: Int[np.ndarray, "n"] | None = None,
) -> Generator[tuple[dict[str, np.ndarray], Position], None, None]:
    """This process's rows of the batches from `position` on (see `train_batches`).

    Args:
      data: the run's settings.
      source: the training data.
      tokenizer: function from n captions to token ids, int32 [n, l].
      bad_examples: counts the examples that cannot be read.
      batch_size: rows of the global batch.
      seed: of everything that is random about the data.
      image_size: side of the images in pixels.
      position: the place in the data at which the first batch begins.
      labels: of the examples, which batches then have; None are none.
    """
    from cyclip_jax.data.pipeline import train_batches  # TensorFlow: slow to import

    return train_batches(
        source,
        tokenizer,
        batch_size=batch_size,
        image_size=image_size,
        seed=seed,
        position=position,
        shuffle=data.shuffle,
        shuffle_window=data.shuffle_window,
        bad_examples=bad_examples,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        transform=data.transform,
        second_transform=data.second_views.transform(data.transform),
        second_caption=data.second_views.caption(),
        negative_caption=data.second_views.negative(),
        has_negative_images=data.negative_image_key is not None,
        labels=labels,
    )


def check_continued(
    config: Any,
    source: Source | Mixture,
    meta: Mapping[str, Any],
    sentences: SentenceSet | None = None,
) -> None:
    """Raises UserError where a run cannot go on in its data from where a checkpoint left it.

    Args:
      config: the run's ConfigDict.
      source: the training data as it is now.
      meta: what the checkpoint says of itself. A field that an old checkpoint lacks is not checked.
      sentences: the sentences as they are now, if there are any.
    """
    if sentences is not None and meta.get("sentences_sum", sentences.sum) != sentences.sum:
        raise UserError(
            f"{sentences.name} has other sentences than those that the run has trained on; bring "
            "back the file, or start in a new --workdir with --config.init_from=WORKDIR"
        )
    kept = kept_sum(source)
    if meta.get("kept_sum", kept) != kept:
        raise UserError(
            "the run has trained on other examples of its data than those that config.data.kept "
            "lists now; bring back the list, or start in a new --workdir with "
            "--config.init_from=WORKDIR"
        )
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


def open_tokenizer(
    data: Data,
    workdir: str | os.PathLike[str],
    sizes: Mapping[str, Any],
    source: Source | Mixture | None = None,
    *,
    is_new: bool = False,
) -> tokenizers.Tokenizer:
    """Opens the run's tokenizer; without a named SentencePiece model it trains one on the captions.

    Args:
      data: the run's settings.
      workdir: the run's directory, which keeps a model trained here as tokenizer.model.
      sizes: the model's sizes, with vocab_size and context_length.
      source: the training data, or None where no model may be trained.
      is_new: whether no weights know tokenizer.model, so that it has to be one of these captions.

    Raises:
      UserError: there is no vocabulary, it does not have the model's size, or it was left by an
        attempt with other captions.
    """
    vocabulary = tokenizers.vocabulary_of(data, workdir)
    is_own = vocabulary is not None and data.vocabulary is None
    if is_own and source is not None:
        _train_vocabulary(str(vocabulary), source, sizes["vocab_size"], is_new)
    return tokenizers.create_tokenizer(
        data.tokenizer,
        vocabulary=vocabulary,
        vocab_size=sizes["vocab_size"],
        context_length=sizes["context_length"],
        keep_end_of_text=data.keep_end_of_text,
    )


def _train_vocabulary(path, source, vocab_size, is_new):
    """Trains a SentencePiece model where there is none, and notes beside it what it was made of."""
    is_there, note = epath.Path(path).exists(), epath.Path(f"{path}.json")
    if is_there and not is_new:
        return
    if is_there and not note.exists():
        logging.warning("%s was there before this run and is its vocabulary.", path)
        return
    captions = source.captions()
    digest = hashlib.sha256()
    for caption in captions:
        digest.update(caption.encode(errors="surrogatepass") + b"\0")
    made_of = {"vocab_size": vocab_size, "captions_sum": digest.hexdigest()}
    if not is_there:
        write_json(note, made_of)
        tokenizers.train_sentencepiece(captions, vocab_size=vocab_size, output=path)
    elif parse_json(note.read_text()) != made_of:
        raise UserError(
            f"{path} was left by an attempt with other captions or another vocab_size, and no "
            "checkpoint here needs it: remove it, and the run trains its own; or name it as "
            "config.data.vocabulary"
        )
