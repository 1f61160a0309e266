"""Evaluators by name.

An evaluator knows no model. `EVALUATORS[type](name, **settings)` opens its data and returns a
function (encoders, output) -> {metric: number}, where `encoders` is an Encoders and `output` an
Output, for what is more than numbers. So what is wrong with the data shows when a run starts, not
when it ends. A metric's 95 % interval stands beside it as `<metric>_ci_low` and `<metric>_ci_high`.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable

from cyclip_jax.errors import UserError
from cyclip_jax.evals.clip_benchmark import clip_benchmark_results
from cyclip_jax.evals.encoders import Encoders
from cyclip_jax.evals.linear_probe import linear_probe
from cyclip_jax.evals.output import Output
from cyclip_jax.evals.retrieval import retrieval
from cyclip_jax.evals.zeroshot import zeroshot
from cyclip_jax.files import write_atomically

EVALUATORS = {"retrieval": retrieval, "zeroshot": zeroshot, "linear_probe": linear_probe}
_DATA = ("pairs", "folder", "train", "test")  # settings that name an evaluation's data

__all__ = ["EVALUATORS", "Encoders", "Evaluation", "Output", "create_evaluators", "evaluate"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation whose data are open.

    Attributes:
      kind: its evaluator's name.
      run: function (encoders, output) -> {metric: number}.
    """

    kind: str
    run: Callable


def create_evaluators(evals):
    """Opens the data of every evaluation.

    Args:
      evals: {name: {"type": …, **settings}}; one whose data (`pairs`, `folder`, `train` or `test`)
        is None is left out.

    Returns:
      {name: Evaluation}.

    Raises:
      UserError: there is no such evaluator or setting, or something is wrong with the data.
    """
    evaluators = {}
    for name, settings in evals.items():
        settings = dict(settings)
        kind = settings.pop("type", None)
        if kind not in EVALUATORS:
            raise UserError(
                f"config.evals.{name}.type is {kind!r}; choose one of {', '.join(EVALUATORS)}"
            )
        try:
            inspect.signature(EVALUATORS[kind]).bind(name, **settings)
        except TypeError as error:
            raise UserError(f"config.evals.{name}: {error}") from error
        if any(settings.get(data, "") is None for data in _DATA):
            continue
        evaluators[name] = Evaluation(kind, EVALUATORS[kind](name, **settings))
    return evaluators


def evaluate(evaluators, encoders, *, directory, model="", checkpoint=""):
    """Runs evaluators.

    Args:
      evaluators: {name: Evaluation}.
      encoders: of the model.
      directory: where each evaluation's details go, `<directory>/<name>/`, and its numbers in
        CLIP_benchmark's layout, `<directory>/clip_benchmark/<name>.json`; None writes nothing.
      model, checkpoint: what is written there of the model.

    Returns:
      {"<name>/<metric>": float}.
    """
    results = {}
    is_first_process = encoders.process_index == 0
    for name, evaluation in evaluators.items():
        output = Output(None if directory is None else directory / name, is_first_process)
        metrics = {key: float(value) for key, value in evaluation.run(encoders, output).items()}
        results |= {f"{name}/{key}": value for key, value in metrics.items()}
        theirs = clip_benchmark_results(
            name, evaluation.kind, metrics, model=model, checkpoint=str(checkpoint)
        )
        if theirs is not None and output.is_wanted:
            write_atomically(
                directory / "clip_benchmark" / f"{name}.json", json.dumps(theirs, indent=1) + "\n"
            )
    return results
