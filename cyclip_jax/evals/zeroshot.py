"""Zero-shot classification of labelled images."""

import dataclasses

import numpy as np

from cyclip_jax.data.places import DataPath
from cyclip_jax.errors import UserError
from cyclip_jax.evals.checks import check_named, check_types
from cyclip_jax.evals.data.labelled import (
    check_images,
    check_labelled,
    open_images,
    open_labelled,
    open_named,
    part_of,
)
from cyclip_jax.evals.evaluator import Evaluator, Needs, Opened
from cyclip_jax.evals.metric import count
from cyclip_jax.evals.statistics.classification import (
    class_table,
    confusion,
    embed,
    predicted,
    prompts_of,
    ranks_of_label,
    top_k,
)
from cyclip_jax.evals.statistics.frequency import captions_with, frequency_correlation
from cyclip_jax.files import FilePath

_TOP = (1, 3, 5, 10)
_MOST_CONFUSIONS = 2000  # classes; with more the matrix of confusions is not written


@dataclasses.dataclass(frozen=True)
class Zeroshot:
    """Top-k accuracy with class embeddings made from templates (Radford et al. 2021, section 3.1).

    Attributes:
      name: of the evaluation, for messages.
      folder: the labelled pictures in any layout of `open_labelled`, which has the other settings
        too; "preset:cifar10" is one of known.PRESETS where TensorFlow Datasets has it.
      split, classes, image_key, label_key, preset: see there. Without templates the prompt is "a
        photo of a {}.".
      frequencies: captions, as in config.data.train, in which the classes are counted.
      head: whether the head of a fine-tuned model scores the classes, in place of their texts.
      held_out_share: scores only the part of the pictures that fine-tuning with this share does not
        train on (see `part_of`); 0 scores all.

    Raises:
      UserError: the settings alone show that something is wrong.
    """

    name: str
    _: dataclasses.KW_ONLY
    folder: DataPath
    split: str | None = None
    classes: FilePath | None = None
    image_key: str | None = None
    label_key: str | None = None
    preset: str | None = None
    frequencies: DataPath | None = None
    head: bool = False
    held_out_share: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        check_named(self, "classes")
        check_labelled(
            self.folder,
            config_key=f"config.evals.{self.name}.folder",
            split=self.split,
            preset=self.preset,
        )
        if not 0 <= self.held_out_share < 1:
            raise UserError(
                f"config.evals.{self.name}.held_out_share {self.held_out_share} must be from 0 to "
                "below 1"
            )
        if self.frequencies is not None:
            check_images(self.frequencies, config_key=f"config.evals.{self.name}.frequencies")

    def open(self) -> Evaluator:
        """Opens the data.

        Returns:
          An evaluator (see evals/__init__.py) that gives `top1`, and of `top3`, `top5`, `top10`
          those of k below the number of classes, as fractions with intervals, and `chance_…`;
          `mean_per_class`, the mean over the classes with images of each one's top1, with its
          interval; `images`, how many were scored, and `classes`; and with `frequencies`
          `frequency_correlation`, the rank correlation of each class's accuracy with how many
          captions name it, with its interval over classes. Details: `classes.json`, and
          `confusion.npz` with counts [C, C], true by predicted, of up to 2,000 classes. Outcomes:
          each of `images` has its `top<k>` and its `label`.

        Raises:
          UserError: what is wrong with the data.
        """
        key = f"config.evals.{self.name}.folder"
        open_set = open_labelled if self.head else open_named
        dataset = open_set(
            self.folder,
            config_key=key,
            split=self.split,
            classes=self.classes,
            image_key=self.image_key,
            label_key=self.label_key,
            preset=self.preset,
            # The part that is held out is of the training data.
            usual_split="train" if self.held_out_share else None,
        )
        dataset = part_of(dataset, self.held_out_share, is_held_out=True, config_key=key)
        captions = None
        if self.frequencies is not None:
            key = f"config.evals.{self.name}.frequencies"
            captions = open_images(self.frequencies, config_key=key).source

        def evaluate(encoders, output):
            images, class_embeds, labels, index = embed(encoders, dataset, by_head=self.head)
            ranks = ranks_of_label(images, class_embeds, labels, names=dataset.classes)
            metrics, hits = top_k(ranks, labels, len(dataset.classes), _TOP)
            output.outcomes({"images": {"index": index, "label": labels, **hits}})
            named = None
            if captions is not None:
                named = captions_with(captions.captions(), dataset.classes)
                metrics["frequency_correlation"] = frequency_correlation(named, ranks < 1, labels)
            if output.is_wanted:
                predictions = predicted(images, class_embeds)
                table = class_table(dataset.classes, ranks < 1, labels, predictions)
                if named is not None:
                    rows = zip(table, named.tolist(), strict=True)
                    table = [{**row, "captions": number} for row, number in rows]
                output.json("classes", table)
                if len(dataset.classes) <= _MOST_CONFUSIONS:
                    counts = confusion(labels, predictions, len(dataset.classes))
                    output.arrays("confusion", counts=counts, classes=np.asarray(dataset.classes))
            return {"images": count(len(ranks)), "classes": count(len(dataset.classes)), **metrics}

        def needs():
            prompts = [] if self.head else [prompts_of(dataset.classes, dataset.templates)]
            return Needs([dataset], prompts)

        return Opened(evaluate, needs)
