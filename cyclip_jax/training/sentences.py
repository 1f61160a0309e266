"""config.sentences: the training of the text tower on sentences, beside pairs or before them."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import jax
from absl import logging
from etils import epath

from cyclip_jax.data.bad_examples import BadExamples
from cyclip_jax.data.glosses import glosses
from cyclip_jax.data.sentences import (
    CAPTIONS,
    WORDNET,
    SentenceSet,
    check_enough,
    is_supervised,
    read_sentences,
)
from cyclip_jax.data.settings import Data
from cyclip_jax.data.sources import Mixture, Source
from cyclip_jax.data.tokenizers import Tokenizer, create_tokenizer
from cyclip_jax.errors import UserError, check_known
from cyclip_jax.files import Located, from_anywhere
from cyclip_jax.losses.sentences import sentence_term
from cyclip_jax.losses.terms import Term
from cyclip_jax.workdir.layout import BAD_SENTENCES

HEADS = ("none", "mlp")


def _from_anywhere(place: str, settings: Mapping[str, Any]) -> str:
    del settings
    return place if place in (CAPTIONS, WORDNET) else from_anywhere(place)


SentencePath: TypeAlias = Annotated[str, Located(_from_anywhere)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sentences:
    """config.sentences.

    Attributes:
      train: where the sentences are from (see data/sentences.py); None is no such training.
      weight: of their loss beside CyCLIP's.
      warmup_steps: over so many steps from the first that sees pairs it grows linearly from 0.
      only_steps: so many steps at the start see sentences alone.
      until_step: the last step that sees sentences; None is the run's last.
      batch_size: sentences, pairs or triplets in a step, over all devices together.
      length: tokens of a sentence that are seen, at most those of a caption.
      temperature, dropout, hard_negative_weight: see `sentence_term`.
      head: "none", or "mlp", a layer that is left out after training (see `SentenceHead`).

    Raises:
      UserError: the settings alone show that something is wrong.
    """

    train: SentencePath | None
    weight: float
    warmup_steps: int
    only_steps: int
    until_step: int | None
    batch_size: int
    length: int
    temperature: float
    dropout: float
    hard_negative_weight: float
    head: str

    def __post_init__(self) -> None:
        check_known("config.sentences.head", self.head, HEADS)
        first_end = max(self.only_steps, 1)
        must = {
            "weight": (self.weight >= 0, "at least 0"),
            "warmup_steps": (self.warmup_steps >= 0, "at least 0"),
            "only_steps": (self.only_steps >= 0, "at least 0"),
            "until_step": (
                self.until_step is None or self.until_step >= first_end,
                f"at least 1 and config.sentences.only_steps {self.only_steps}",
            ),
            "batch_size": (self.batch_size >= 2, "at least 2"),
            "length": (self.length >= 3, "at least 3, with both ends"),
            "temperature": (self.temperature > 0, "more than 0"),
            "dropout": (0 <= self.dropout < 1, "at least 0 and less than 1"),
            "hard_negative_weight": (self.hard_negative_weight >= 0, "at least 0"),
        }
        for name, (is_allowed, what) in must.items():
            if not is_allowed:
                raise UserError(f"config.sentences.{name} {getattr(self, name)} must be {what}")
        if self.only_steps and not self.is_on:
            what = "train is not set" if self.train is None else "weight is 0"
            raise UserError(
                f"config.sentences.only_steps {self.only_steps} asks for steps on sentences alone, "
                f"but config.sentences.{what}; set it, or only_steps to 0"
            )
        if self.train is not None:
            is_supervised(self.train)

    @property
    def is_on(self) -> bool:
        """Whether the run trains on sentences at all."""
        return self.train is not None and self.weight != 0

    @property
    def has_head(self) -> bool:
        """Whether there is a head to be trained."""
        return self.is_on and self.head == "mlp"

    @property
    def columns(self) -> int:
        """How many sentences stand side by side: 1, an anchor and its positive, or 3."""
        if self.train is None or not is_supervised(self.train):
            return 1
        return 3 if self.hard_negative_weight else 2

    def ends(self, total_steps: int) -> int:
        """The step after the last that sees sentences, of a run of so many steps."""
        if not self.is_on:
            return 0
        return total_steps if self.until_step is None else min(self.until_step, total_steps)

    def term(self) -> Term:
        """The term of the objective; its weight is 0 where the run has no sentences."""
        return sentence_term(
            weight=self.weight if self.is_on else 0,
            kind=("unsupervised", "pairs", "triplets")[self.columns - 1],
            temperature=self.temperature,
            dropout=self.dropout,
            hard_negative_weight=self.hard_negative_weight,
            warmup_steps=self.warmup_steps,
        )


def sentences_term(**section: Any) -> Term:
    """The term of the section config.sentences, with its keys as arguments."""
    return Sentences(**section).term()


def open_sentences(settings: Sentences, data: Data, source: Source | Mixture) -> SentenceSet:
    """Opens the sentences of a run that trains on some.

    Args:
      settings: config.sentences.
      data: config.data.
      source: the training data, whose captions may be the sentences.

    Raises:
      UserError: something is wrong with them, or there are too few for a batch.
    """
    sentences = read_sentences(
        settings.train or "",
        settings.columns,
        captions=source.captions,
        wordnet=lambda: glosses(data.synonyms),
        max_bad_share=data.max_bad_share,
    )
    check_enough(sentences, settings.batch_size)
    return sentences


def name_faults(sentences: SentenceSet, data: Data, workdir: epath.Path) -> None:
    """Names the rows that are left out in a file of the workdir, on process 0."""
    if not sentences.faults or jax.process_index() != 0:
        return
    path = workdir / BAD_SENTENCES
    rows = len(sentences) + len(sentences.faults)
    with contextlib.closing(BadExamples(path, data.max_bad_share, rows)) as bad:
        for number, (key, reason, detail) in enumerate(sentences.faults):
            bad.add(key, number, reason, detail)
    logging.warning(
        "%d of %d rows of %s are left out; they are named in %s",
        *(len(sentences.faults), rows, sentences.name, path),
    )


def shorter_tokenizer(
    data: Data, tokenizer: Tokenizer, sizes: Mapping[str, Any], settings: Sentences
) -> Tokenizer:
    """The run's tokenizer with as many tokens as sentences have.

    Args:
      data: config.data.
      tokenizer: the run's.
      sizes: the model's.
      settings: config.sentences.
    """
    return create_tokenizer(
        data.tokenizer,
        vocabulary=tokenizer.vocabulary,
        vocab_size=sizes["vocab_size"],
        context_length=min(settings.length, sizes["context_length"]),
    )
