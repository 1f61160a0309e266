"""Label pictures with the classes that you name, as CSV.

python -m cyclip_jax.classify runs/cc3m photos --classes=cat,dog,bird
"""

import csv
import dataclasses
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from absl import flags

from cyclip_jax.errors import UserError
from cyclip_jax.runtime import command

_POSITIONAL = (
    "MODEL PICTURES …: a workdir, an export, a folder of open_clip or transformers, a weight "
    "file, or hf-hub:user/name; and folders, pictures, or a table or shards named as "
    "config.data.train is"
)


@dataclasses.dataclass(frozen=True)
class Labelled:
    """What a model says of a picture.

    Attributes:
      picture: its path, or its name in the data.
      labels: the most similar classes, the best first; () of a picture that cannot be read.
      scores: of each of them: how likely it is among all classes, or, by a model that was trained
        with the sigmoid loss, how likely picture and class belong together.
    """

    picture: str
    labels: tuple[str, ...]
    scores: tuple[float, ...]


def classify_pictures(
    model: str | os.PathLike[str],
    pictures: Sequence[str],
    classes: Sequence[str] | None,
    *,
    templates: Sequence[str] = (),
    top: int = 1,
    step: int | None = None,
    weights: str = "raw",
    batch_size: int = 64,
) -> list[Labelled]:
    """Labels pictures by the similarity of their embeddings with those of classes.

    Args:
      model: anything that `cyclip_jax.load` takes.
      pictures: folders with pictures, pictures, or data named as config.data.train is.
      classes: names of at least two classes; None are those of a fine-tuned model's head.
      templates: sentences with {} that stand around a name; the class is the mean of them. Without
        any the prompt is "a photo of a {}.".
      top: how many classes are named.
      step, weights: which of a workdir's weights, as of `open_checkpoint`.
      batch_size: pictures that are embedded at once.

    Returns:
      The pictures in their order, those that cannot be read without labels.

    Raises:
      UserError: something is not there, or the classes cannot be told apart.
    """
    from cyclip_jax.evals.data.class_names import DEFAULT_TEMPLATES
    from cyclip_jax.evals.data.loose_pictures import open_pictures
    from cyclip_jax.evals.statistics.classification import (
        embed_classes,
        rows_of_classes,
        scores_of_classes,
        with_constant,
    )
    from cyclip_jax.runtime.started import quieten_tensorflow
    from cyclip_jax.training.opened_model import open_model

    if classes is not None:
        _check_classes(classes, top)
    quieten_tensorflow()
    sets = [open_pictures(path) for path in pictures]
    opened = open_model(model, step=step, weights=weights, batch_size=batch_size)
    scale, bias = opened.logit_scale, opened.logit_bias
    if classes is None:
        head = opened.encoders.head
        if head is None:
            raise UserError(f"{model} has no head of classes; name some with --classes")
        _check_classes(head.names, top)
        labels, class_embeds, bias = list(head.names), rows_of_classes(head), None
    else:
        labels = list(classes)
        class_embeds = embed_classes(opened.encoders, labels, templates or DEFAULT_TEMPLATES)
    labelled = []
    for images in sets:
        embeds, found = opened.encoders.image_embeds(images)
        embeds = with_constant(embeds) if classes is None else embeds
        scores = scores_of_classes(embeds, class_embeds, scale, bias)  # [M, C]
        rows = dict(zip(found.tolist(), scores, strict=True))
        for number, name in enumerate(images.source.keys(range(len(images.source)))):
            row = rows.get(number)
            best = () if row is None else (-row).argsort(kind="stable")[:top].tolist()
            own = () if row is None else tuple(float(row[c]) for c in best)
            labelled.append(Labelled(name, tuple(labels[c] for c in best), own))
    return labelled


def _check_classes(classes, top):
    if len(set(classes)) < 2:
        raise UserError("--classes names fewer than two classes; give at least two")
    if not 1 <= top <= len(classes):
        raise UserError(f"--top={top} must be from 1 to {len(classes)}, the number of classes")


def as_csv(labelled: Iterable[Labelled], top: int) -> Iterator[str]:
    """Lines of a CSV with the columns picture, label and score, and label_2, score_2, …"""
    endings = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    header = [f"{name}{ending}" for ending in endings for name in ("label", "score")]
    yield _line(["picture", *header])
    for picture in labelled:
        scores = [f"{score:.4f}" for score in picture.scores]
        pairs = [field for pair in zip(picture.labels, scores, strict=True) for field in pair]
        yield _line([picture.picture, *pairs, *[""] * (len(header) - len(pairs))])


def _line(fields):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(fields)
    return text.getvalue()


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_string(
        "classes",
        None,
        "Names with commas between them, or a file: one name in each line, or JSON with a list "
        "'classes' and perhaps a list 'templates'. A fine-tuned model has its own.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "template",
        [],
        "Sentence with {} around a name, by default 'a photo of a {}.'; it can be repeated.",
        flag_values=values,
    )
    flags.DEFINE_integer("top", 1, "How many classes are named.", flag_values=values)
    flags.DEFINE_string(
        "output", None, "File to write; by default the terminal.", flag_values=values
    )
    flags.DEFINE_integer(
        "batch_size", 64, "Pictures that are embedded at once.", flag_values=values
    )
    command.define_step(values)
    command.define_weights(values)


def starting(values: Any, *paths: str) -> str:
    """What is begun, in words."""
    del values
    return f"labels by {paths[0]} for {', '.join(paths[1:])}"


def classify(values: Any, *paths: str) -> None:
    """Labels, writes, and says on stderr what could not be read."""
    from cyclip_jax.evals.data.class_names import checked_templates, named_classes
    from cyclip_jax.files import absolute, write_atomically

    if len(paths) < 2:
        raise UserError("PICTURES is missing: name a model, and pictures")
    model, *pictures = paths
    classes, templates = None, []
    if values.classes is not None:
        classes, templates = named_classes(values.classes)
    elif values.template:
        raise UserError("--template stands around the names of --classes, which is not given")
    if values.template:
        templates = checked_templates(values.template, "--template")
    labelled = classify_pictures(
        model,
        pictures,
        classes,
        templates=templates,
        top=values.top,
        step=values.step,
        weights=values.weights,
        batch_size=values.batch_size,
    )
    lines = as_csv(labelled, values.top)
    if values.output is None:
        sys.stdout.writelines(lines)
    else:
        write_atomically(absolute(values.output, "--output"), "".join(lines).encode())
    unreadable = [picture.picture for picture in labelled if not picture.labels]
    if unreadable:
        shown = ", ".join(unreadable[:3]) + (", …" if len(unreadable) > 3 else "")
        print(f"{len(unreadable)} pictures cannot be read: {shown}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; None are the arguments of the process."""
    command.run(
        classify,
        define_flags,
        doc=__doc__,
        arguments=arguments,
        positional=_POSITIONAL,
        starting=starting,
    )


if __name__ == "__main__":
    main()
