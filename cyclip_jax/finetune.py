"""Fine-tune a model to pictures with labels.

python -m cyclip_jax.finetune MODEL PICTURES --test=PICTURES --workdir=runs/flowers
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from cyclip_jax.errors import UserError
from cyclip_jax.runtime import command
from cyclip_jax.runtime.distributed_flags import define_distributed_flags
from cyclip_jax.runtime.memory import limit_arenas

if TYPE_CHECKING:
    from cyclip_jax.training.finetuning import FineTuning

_METHODS = ("linear", "contrastive", "margin")
_POSITIONAL = (
    "MODEL PICTURES: a workdir, an export, a folder of open_clip or transformers, a weight "
    "file, or hf-hub:user/name; and labelled pictures to train on: a folder with one for each "
    "class, a CSV, tfds:NAME or preset:NAME"
)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    flags.DEFINE_multi_string(
        "test",
        [],
        "Labelled pictures to test on, or NAME=PICTURES; it can be repeated, for other "
        "distributions. They choose nothing.",
        flag_values=values,
    )
    flags.DEFINE_string("workdir", None, "Directory of the run.", required=True, flag_values=values)
    flags.DEFINE_enum(
        "method",
        "linear",
        _METHODS,
        "What is trained: a linear head that begins as the classes' texts, and the image tower; "
        "both towers by pictures and texts of their classes; or the image tower against the "
        "classes' texts with CLIPood's margin.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "classes", None, "JSON with the classes' names and templates.", flag_values=values
    )
    flags.DEFINE_string("image_key", None, "Where the picture is.", flag_values=values)
    flags.DEFINE_string("label_key", None, "Where the label is.", flag_values=values)
    flags.DEFINE_integer("epochs", 10, "Passes over the pictures.", flag_values=values)
    flags.DEFINE_integer("batch_size", 64, "Pictures in a step.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Seed of the run.", flag_values=values)
    flags.DEFINE_multi_string(
        "set",
        [],
        "NAME=VALUE of any setting of a config, such as optimizer.learning_rate=1e-5.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "choose",
        [],
        "NAME=VALUE,VALUE: the value is chosen by a held-out part of the pictures, of several such "
        "settings all combinations are tried; so is the α of the model between.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "held_out", 0.2, "Share of each class that chooses settings.", flag_values=values
    )
    command.define_allow_changes(values)
    define_distributed_flags(values)


def finetune(
    wanted: "FineTuning",
    workdir: str | os.PathLike[str],
    *,
    choices: Sequence[str] = (),
    held_out: float = 0.2,
    allow_changes: Sequence[str] = (),
) -> dict[str, float] | None:
    """Fine-tunes a model, or continues doing so, and scores the models on the way to it.

    The workdir is that of a run as `train` makes it. Beside it are `choice.json`, if settings were
    chosen; `wise_ft.json`, the accuracies of the models between; and `wise_ft/`, one of them as an
    open_clip export: that with the α that the held-out pictures chose, or else ½.

    Args:
      wanted: what is fine-tuned, and how.
      workdir: directory of the run.
      choices: NAME=VALUE,VALUE, of which held-out pictures choose.
      held_out: share of each class that is held out for that.
      allow_changes: as of `train`.

    Returns:
      The last step's metrics, or None where a signal ended the run before.

    Raises:
      UserError: something is wrong that the user can mend.
    """
    import jax

    from cyclip_jax import evals
    from cyclip_jax.export import write_export
    from cyclip_jax.files import absolute
    from cyclip_jax.report.write import write_report
    from cyclip_jax.train import train
    from cyclip_jax.training.choosing import choose
    from cyclip_jax.training.finetuning import fine_tuning_config
    from cyclip_jax.training.starting_point import begun_from
    from cyclip_jax.training.wise_ft import (
        evaluations_of,
        is_scored,
        score_path,
        scores_asked,
    )
    from cyclip_jax.workdir.layout import WISE_FT

    workdir = absolute(workdir, "--workdir")
    wanted = dataclasses.replace(wanted, model=begun_from(wanted.model, workdir))
    opened, pictures = wanted.open_model(), wanted.open_pictures()
    config = fine_tuning_config(wanted, opened, pictures)
    alpha = 0.5
    if choices:
        if not 0 < held_out < 1:
            raise UserError(f"--held_out={held_out} must be between 0 and 1")
        # Faults of the tests' data show before candidates are trained.
        evals.create_evaluators(evaluations_of(config, workdir))
        chosen = choose(
            *(wanted, workdir, opened, pictures, choices), held_out=held_out, train=train
        )
        if chosen is None:
            return None
        wanted = dataclasses.replace(wanted, settings={**wanted.settings, **chosen["settings"]})
        alpha = chosen["alpha"]
        config = fine_tuning_config(wanted, opened, pictures)
    metrics = train(config, workdir, allow_changes=allow_changes)
    if metrics is None:
        return None
    folder = workdir / WISE_FT.removesuffix(".json")
    asked = scores_asked(config, workdir, alpha=alpha, is_chosen=bool(choices))
    if folder.exists() and is_scored(workdir, asked):
        return metrics
    between = score_path(asked, workdir, opened, pictures)
    if jax.process_index() == 0:
        write_export(between, folder, export_format="open_clip")
        print(f"the model with α = {alpha} is in {folder}", flush=True)
        write_report([workdir])
    return metrics


def main(values: Any, *paths: str) -> None:
    """Fine-tunes as the flags say."""
    from cyclip_jax.runtime import distributed

    limit_arenas()
    try:
        _as_told(values, paths)
        status = 0
    except UserError as error:
        status = f"error: {error}"
    distributed.end(status)


def _as_told(values, paths):
    from cyclip_jax.runtime import distributed
    from cyclip_jax.runtime.command import literal
    from cyclip_jax.training.finetuning import FineTuning, parsed_setting

    if len(paths) != 2:
        raise UserError(f"there are {len(paths)} arguments; name two, MODEL and PICTURES")
    settings = dict(parsed_setting(text, "--set") for text in values.set)
    wanted = FineTuning(
        model=paths[0],
        train=paths[1],
        tests=dict(_named(text, number) for number, text in enumerate(values.test)),
        method=values.method,
        names=values.classes,
        image_key=values.image_key,
        label_key=values.label_key,
        epochs=values.epochs,
        batch_size=values.batch_size,
        seed=values.seed,
        settings={name: literal(value) for name, value in settings.items()},
    )
    distributed.join_as_told(values)
    finetune(
        wanted,
        pathlib.Path(values.workdir),
        choices=values.choose,
        held_out=values.held_out,
        allow_changes=values.allow_changes,
    )


def starting(values: Any, *paths: str) -> str:
    """What is begun, in words."""
    return f"fine-tuning of {' to '.join(paths[:2])} in {values.workdir}"


def _named(text, number):
    """(name of the evaluation, pictures) of --test=NAME=PICTURES, or of --test=PICTURES."""
    name, equals, place = text.partition("=")
    if equals and name.isidentifier():
        return name, place
    return "test" if number == 0 else f"test_{number + 1}", text


if __name__ == "__main__":
    command.run(
        main,
        define_flags,
        doc=__doc__,
        positional=_POSITIONAL,
        starting=starting,
        is_run=True,
        continues=True,
    )
