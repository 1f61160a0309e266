"""config.classes: fine-tuning on labelled pictures, in place of pairs."""

import dataclasses
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float

from cyclip_jax.data.places import DataPath
from cyclip_jax.data.sources.subset import ClassPairs
from cyclip_jax.errors import UserError, check_known
from cyclip_jax.evals.data.labelled import LabelledImages, check_labelled, open_labelled, part_of
from cyclip_jax.evals.encoders import Encoders
from cyclip_jax.evals.statistics.classification import embed_classes
from cyclip_jax.files import FilePath
from cyclip_jax.losses.classes import class_term
from cyclip_jax.losses.terms import Term
from cyclip_jax.workdir.classes import classes_of, keep_classes
from cyclip_jax.workdir.saved import saved_steps

_KEY = "config.classes.train"
LOSSES = ("head", "pairs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classes:
    """config.classes.

    Attributes:
      train: labelled pictures, as `open_labelled` reads them; None is no such training.
      names, image_key, label_key: its `classes`, `image_key` and `label_key`.
      loss: "head", the cross-entropy over a head of the model; or "pairs", what config.loss says of
        pairs of a picture and its class in words.
      margin: λ of CLIPood (see `class_logits`).
      label_smoothing: so much of the target is spread over all classes.
      held_out_share: share of each class that is not trained on (see `part_of`).

    Raises:
      UserError: the settings alone show that something is wrong.
    """

    train: DataPath | None
    names: FilePath | None
    image_key: str | None
    label_key: str | None
    loss: str
    margin: float
    label_smoothing: float
    held_out_share: float

    def __post_init__(self) -> None:
        check_known("config.classes.loss", self.loss, LOSSES)
        must = {
            "margin": (0 <= self.margin < 1, "from 0 to below 1"),
            "label_smoothing": (0 <= self.label_smoothing < 1, "from 0 to below 1"),
            "held_out_share": (0 <= self.held_out_share < 1, "from 0 to below 1"),
        }
        for name, (is_allowed, what) in must.items():
            if not is_allowed:
                raise UserError(f"config.classes.{name} {getattr(self, name)} must be {what}")
        if self.train is not None:
            check_labelled(self.train, config_key=_KEY)

    @property
    def is_on(self) -> bool:
        """Whether the run trains on labelled pictures."""
        return self.train is not None

    @property
    def has_head(self) -> bool:
        """Whether it trains by a head of the model."""
        return self.is_on and self.loss == "head"

    def term(self) -> Term:
        """The term of the objective; its weight is 0 where there is no head to train by."""
        return class_term(
            weight=1.0 if self.has_head else 0.0,
            margin=self.margin,
            label_smoothing=self.label_smoothing,
        )

    def open(self, num_classes: int | None, workdir: epath.Path) -> LabelledImages:
        """Opens the part of the pictures that is trained on.

        Args:
          num_classes: config.model.num_classes.
          workdir: the run's; what it has trained on before must have had the same classes.

        Raises:
          UserError: something is wrong with them.
        """
        images = open_labelled(
            self.train or "",
            config_key=_KEY,
            classes=self.names,
            image_key=self.image_key,
            label_key=self.label_key,
        )
        if self.has_head and num_classes != len(images.classes):
            raise UserError(
                f"{images.path} has {len(images.classes)} classes; set config.model.num_classes to "
                f"that, not {num_classes}"
            )
        if not self.has_head and not images.is_named:
            raise UserError(
                f"the classes of {images.path} ({', '.join(images.keys[:2])}, …) are numbers "
                "without names, which make no pairs; set config.classes.names to a file of names"
            )
        before = classes_of(workdir)
        if saved_steps(workdir) and before not in (None, images.classes):
            raise UserError(
                f"{images.path} has other classes than those that {workdir} was trained on; bring "
                "them back, or start in a new --workdir"
            )
        return part_of(images, self.held_out_share, is_held_out=False, config_key=_KEY)


def classes_term(**section: Any) -> Term:
    """The term of the section config.classes, with its keys as arguments."""
    return Classes(**section).term()


def write_classes(images: LabelledImages | None, workdir: epath.Path) -> None:
    """Keeps the names of the classes in the workdir of a run that has some."""
    if images is not None:
        keep_classes(workdir, images.classes, images.templates)


def as_pairs(images: LabelledImages) -> ClassPairs:
    """Labelled pictures as pairs with their classes in words."""
    prompts = [[template.format(name) for template in images.templates] for name in images.classes]
    return ClassPairs(images.source, images.labels, prompts)


def first_head(
    images: LabelledImages, encoders: Encoders, width: int
) -> dict[str, Float[np.ndarray, "..."]]:
    """The head that scores as zero-shot classification does; zeros, where classes have no names.

    Args:
      images: whose classes it has.
      encoders: of the model that fine-tuning begins with.
      width: D, numbers of an embedding.

    Returns:
      {"kernel": [D, C], "bias": [C]}, float32.
    """
    embeds = np.zeros((len(images.classes), width))
    if images.is_named:
        embeds = embed_classes(encoders, images.classes, images.templates)
    kernel = np.ascontiguousarray(embeds.T, np.float32)
    return {"kernel": kernel, "bias": np.zeros(kernel.shape[1], np.float32)}
