"""The choice of fine-tuning's settings by pictures that are held out of the training data."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.labelled import LabelledImages
from cyclip_jax.files import parse_json, write_json
from cyclip_jax.interop.checkpoint import Checkpoint
from cyclip_jax.training.finetuning import HELD_OUT, FineTuning, candidates, fine_tuning_config
from cyclip_jax.training.wise_ft import (
    accuracies,
    best_alpha,
    evaluations_of,
    open_path,
    weights_of_run,
)
from cyclip_jax.workdir.layout import CANDIDATES, CHOICE, OF_AVERAGE

Train = Callable[[Any, epath.Path], dict[str, float] | None]


def choose(
    wanted: FineTuning,
    workdir: epath.Path,
    opened: Checkpoint,
    pictures: LabelledImages,
    choices: Sequence[str],
    *,
    held_out: float,
    train: Train,
) -> dict[str, Any] | None:
    """Trains each candidate on what is not held out, in `<workdir>/candidates/<number>`.

    What was chosen stands in `choice.json`, and is taken from there by the same call.

    Args:
      wanted: what is fine-tuned.
      workdir: of the run for which settings are chosen.
      opened, pictures: `wanted.open_model()` and `wanted.open_pictures()`.
      choices: NAME=VALUE,VALUE.
      held_out: share of each class that is held out.
      train: function (config, workdir) that trains a run to its end, or returns None.

    Returns:
      {"settings": {name: value}, "alpha": α of the model between, …}; None where a signal ended it.

    Raises:
      UserError: something is wrong with the settings or the pictures.
    """
    asked = _asked(wanted, choices, held_out)
    if (known := _chosen_before(workdir / CHOICE, asked)) is not None:
        return known
    options = candidates(choices)
    folders = [workdir / CANDIDATES / str(number) for number in range(len(options))]
    trained = train_candidates(
        *(wanted, opened, pictures, dict(zip(folders, options, strict=True))),
        held_out=held_out,
        train=train,
    )
    if trained is None:
        return None
    configs, scores = trained
    best = max(range(len(scores)), key=scores.__getitem__)
    folder = folders[best]
    path = open_path(opened, folder, pictures, weights=weights_of_run(configs[best]))
    rows = accuracies(path, evaluations_of(configs[best], folder))
    chosen = {
        "asked": asked,
        "candidates": [
            {"settings": settings, "top1": score}
            for settings, score in zip(options, scores, strict=True)
        ],
        "settings": options[best],
        "alpha": best_alpha(rows, HELD_OUT),
        "alphas": rows,
    }
    if jax.process_index() == 0:
        write_json(workdir / CHOICE, chosen)
    _say(f"chosen by {held_out:.0%} of the pictures: {options[best]} and α = {chosen['alpha']}")
    return chosen


def train_candidates(
    wanted: FineTuning,
    opened: Checkpoint,
    pictures: LabelledImages,
    options: Mapping[epath.Path, Mapping[str, Any]],
    *,
    held_out: float,
    train: Train,
) -> tuple[list[Any], list[float]] | None:
    """Trains candidates on what is not held out, and scores them by the rest.

    Args:
      wanted, opened, pictures, held_out, train: as of `choose`.
      options: {workdir of a candidate: its settings}.

    Returns:
      (the configs, the accuracies on held-out pictures); None where a signal ended it.

    Raises:
      UserError: something is wrong with the settings or the pictures.
    """
    configs = [
        fine_tuning_config(
            dataclasses.replace(wanted, settings={**wanted.settings, **settings}),
            *(opened, pictures),
            held_out_share=held_out,
        )
        for settings in options.values()
    ]
    scores = []
    for number, (folder, settings) in enumerate(options.items()):
        _say(f"candidate {number + 1} of {len(options)}: {settings}")
        metrics = train(configs[number], folder)
        if metrics is None:
            return None
        ending = OF_AVERAGE if weights_of_run(configs[number]) == "average" else ""
        scores.append(metrics[f"{HELD_OUT}{ending}/top1"])
    return configs, scores


def _say(text: str) -> None:
    if jax.process_index() == 0:
        print(text, flush=True)


def _asked(wanted: FineTuning, choices: Sequence[str], held_out: float) -> dict[str, Any]:
    """All that a choice depends on, as JSON has it."""
    told = {**dataclasses.asdict(wanted), "choices": list(choices), "held_out": held_out}
    del told["tests"]
    return json.loads(json.dumps(told, default=str))


def _chosen_before(path: epath.Path, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the file says, where it was asked for the same; None where there is no such file.

    Raises:
      UserError: it was asked for something else.
    """
    if not path.exists():
        return None
    known = parse_json(path.read_text())
    if known["asked"] != asked:
        raise UserError(
            f"{path} was chosen for other settings or pictures; choose another --workdir"
        )
    return known
