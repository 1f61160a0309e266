"""WiSE-FT: accuracies of the models between the one before fine-tuning and the one after it."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from cyclip_jax import evals
from cyclip_jax.data.sources import Source
from cyclip_jax.evals.data.labelled import LabelledImages
from cyclip_jax.files import file_errors, parse_json, write_json
from cyclip_jax.interop.checkpoint import Checkpoint
from cyclip_jax.interop.interpolation import between
from cyclip_jax.interop.pretrained import completed, verified
from cyclip_jax.losses.classes import HEAD
from cyclip_jax.runtime.sections import resolve_paths
from cyclip_jax.training.classes import first_head
from cyclip_jax.training.opened_model import OpenedModel, open_model
from cyclip_jax.workdir.layout import WISE_FT
from cyclip_jax.workdir.saved import saved_steps

ALPHAS = tuple(round(0.1 * tenth, 1) for tenth in range(11))  # as Wortsman et al. 2022


@dataclasses.dataclass(frozen=True)
class Path:
    """The straight line from a model to the same model after fine-tuning.

    Attributes:
      before: the model, with a head of its classes' texts where the other has a head.
      after: the fine-tuned model. Both are completed and verified.
      opened: the latter as it embeds.
      pictures: those on which BatchNorm's statistics are taken anew.
    """

    before: Checkpoint
    after: Checkpoint
    opened: OpenedModel
    pictures: Source

    def at(self, alpha: float) -> Checkpoint:
        """The model (1 − α)·before + α·after (Wortsman et al. 2022, section 3)."""
        mixed = between(self.before, self.after, alpha=alpha, pictures=self.pictures)
        return dataclasses.replace(mixed, classes=self.after.classes)


def open_path(
    before: Checkpoint, workdir: str | os.PathLike[str], images: LabelledImages, *, weights: str
) -> Path:
    """Opens the path of a fine-tuning run.

    Args:
      before: the model that it began as, completed.
      workdir: of the run.
      images: all labelled pictures that it was told to train on.
      weights: "raw", or "average" for the average that it kept.
    """
    opened = open_model(workdir, weights=weights)
    if f"{HEAD}.weight" in opened.checkpoint.weights:
        before = _with_head(before, opened, images)
    after = verified(completed(opened.checkpoint))
    return Path(verified(before), after, opened, images.source)


def _with_head(before, after, images):
    """A model with the head that scores as the texts of the classes do."""
    own = {name: after.checkpoint.weights[name] for name in (f"{HEAD}.weight", f"{HEAD}.bias")}
    encoders = after.with_weights(before.weights | own)
    first = first_head(images, encoders, before.model["embed_dim"])
    head = {
        f"{HEAD}.weight": np.ascontiguousarray(first["kernel"].T),
        f"{HEAD}.bias": first["bias"],
    }
    settings = before.model | {"num_classes": len(images.classes)}
    return dataclasses.replace(before, weights=before.weights | head, model=settings)


def accuracies(
    path: Path, evaluations: Mapping[str, Any], alphas: Sequence[float] = ALPHAS
) -> list[dict[str, Any]]:
    """Scores the models along a path.

    Args:
      path: from before to after.
      evaluations: {name: settings of a zero-shot evaluation}.
      alphas: α of the models.

    Returns:
      [{"alpha": α, "top1": {evaluation: [value, low, high]}}], fractions with 95 % intervals.
    """
    evaluators = evals.create_evaluators(evaluations)
    rows = []
    for alpha in alphas:
        encoders = path.opened.with_weights(path.at(alpha).weights)
        results = evals.evaluate(evaluators, encoders, directory=None)
        top1 = {name: metrics["top1"] for name, metrics in results.items()}
        rows.append(
            {
                "alpha": alpha,
                "top1": {
                    name: [metric.value, *(metric.interval or ())] for name, metric in top1.items()
                },
            }
        )
    return rows


def weights_of_run(config: Any) -> str:
    """Which weights of a run are its result: "average" where it keeps one, else "raw"."""
    return "raw" if config.average.kind == "none" else "average"


def evaluations_of(config: Any, workdir: epath.Path) -> dict[str, Any]:
    """The settings of a run's zero-shot evaluations by their names."""
    evaluations = resolve_paths(config, workdir).evals.to_dict()
    return {name: own for name, own in evaluations.items() if own["type"] == "zeroshot"}


def scores_asked(config: Any, workdir: epath.Path, **told: Any) -> dict[str, Any]:
    """All that `wise_ft.json` depends on for a run, as JSON has it.

    Args:
      config: of the run.
      workdir: its directory.
      **told: what else stands there.
    """
    asked = {
        "step": max(saved_steps(workdir)),
        "weights": weights_of_run(config),
        "evaluations": evaluations_of(config, workdir),
        **told,
    }
    return json.loads(json.dumps(asked))


def is_scored(workdir: epath.Path, asked: Mapping[str, Any]) -> bool:
    """Whether `wise_ft.json` is there, and is what is asked for."""
    try:
        told = parse_json((workdir / WISE_FT).read_text())
    except (ValueError, *file_errors()):
        return False
    return isinstance(told, dict) and all(told.get(name) == own for name, own in asked.items())


def score_path(
    asked: Mapping[str, Any], workdir: epath.Path, before: Checkpoint, images: LabelledImages
) -> Checkpoint:
    """Writes `wise_ft.json`, and says what it holds.

    Args:
      asked: the run's `scores_asked`, with the `alpha` of the model that is wanted.
      workdir: of the run, which is done.
      before, images: see `open_path`.

    Returns:
      The model with that α.
    """
    path = open_path(before, workdir, images, weights=asked["weights"])
    rows = accuracies(path, asked["evaluations"]) if asked["evaluations"] else []
    if jax.process_index() == 0:
        write_json(workdir / WISE_FT, {**asked, "path": rows})
        for row in rows:
            told = "  ".join(f"{name} {top1[0]:.1%}" for name, top1 in row["top1"].items())
            print(f"α = {row['alpha']:.1f}  {told}", flush=True)
    return path.at(asked["alpha"])


def best_alpha(rows: Sequence[Mapping[str, Any]], evaluation: str) -> float:
    """The α with the best accuracy of an evaluation, of several the one in their middle."""
    values = [row["top1"][evaluation][0] for row in rows]
    best = [row["alpha"] for row, value in zip(rows, values, strict=True) if value == max(values)]
    return best[len(best) // 2]
