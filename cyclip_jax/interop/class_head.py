"""The head of a fine-tuned model beside an export, for which no format has a place."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from etils import epath
from jaxtyping import Float

from cyclip_jax.errors import UserError
from cyclip_jax.files import write_json
from cyclip_jax.interop.checkpoint import Checkpoint
from cyclip_jax.interop.files import read_weights, write_safetensors
from cyclip_jax.interop.weights import without_head
from cyclip_jax.losses.classes import HEAD
from cyclip_jax.workdir.classes import classes_of
from cyclip_jax.workdir.layout import CLASSES

FILE = "class_head.safetensors"


@dataclasses.dataclass(frozen=True)
class Head:
    """A linear layer from unit-norm image embeddings to logits of classes.

    Attributes:
      weight: float [C, D], as PyTorch's Linear has it.
      bias: float [C].
      classes: their names.
    """

    weight: Float[np.ndarray, "c d"]
    bias: Float[np.ndarray, "c"]
    classes: Sequence[str]


def parted_head(checkpoint: Checkpoint) -> tuple[Head | None, Checkpoint]:
    """A checkpoint as (its head with the scale multiplied in, the model without it)."""
    if f"{HEAD}.weight" not in checkpoint.weights:
        return None, checkpoint
    kernel, bias = (checkpoint.weights[f"{HEAD}.{name}"] for name in ("weight", "bias"))
    scale = math.exp(float(checkpoint.weights["logit_scale"]))
    classes = checkpoint.classes or [str(number) for number in range(len(bias))]
    settings = {name: value for name, value in checkpoint.model.items() if name != "num_classes"}
    model = dataclasses.replace(
        checkpoint, weights=without_head(checkpoint.weights), model=settings, classes=None
    )
    return Head((scale * kernel).astype(np.float32), bias, classes), model


def with_head_beside(checkpoint: Checkpoint, folder: epath.Path) -> Checkpoint:
    """A checkpoint of an export with the head that lies there, if one does.

    Raises:
      UserError: the head is not one of this model.
    """
    if not folder.is_dir() or not (folder / FILE).exists():
        return checkpoint
    stored, classes = read_weights(folder / FILE), classes_of(folder)
    weight, bias = (stored.get(name, np.zeros(0)) for name in ("weight", "bias"))
    width = checkpoint.model["embed_dim"]
    if classes is None or weight.shape != (len(classes), width) or bias.shape != weight.shape[:1]:
        raise UserError(
            f"{folder / FILE} is no head of {width} numbers for the classes in {folder / CLASSES}; "
            "bring back both files, or remove them"
        )
    scale = math.exp(float(checkpoint.weights["logit_scale"]))
    head = {f"{HEAD}.weight": weight / scale, f"{HEAD}.bias": bias}
    return dataclasses.replace(
        checkpoint,
        weights=checkpoint.weights | head,
        model=checkpoint.model | {"num_classes": len(classes)},
        classes=classes,
    )


def write_head(folder: epath.Path, head: Head | None) -> None:
    """Writes a head and the names of its classes; nothing where there is none."""
    if head is None:
        return
    write_safetensors(folder / FILE, {"weight": head.weight, "bias": head.bias})
    write_json(folder / CLASSES, {"classes": list(head.classes)})
