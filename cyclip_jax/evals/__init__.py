"""Evaluators by name.

An evaluator knows no model. `EVALUATORS[type](name, **settings)` opens its data and returns a
function (encoders, figures) -> {metric: number}, where `encoders` is an Encoders and `figures` the
directory for pictures. So what is wrong with the data shows when a run starts, not when it ends.
"""

import inspect

from cyclip_jax.errors import UserError
from cyclip_jax.evals.encoders import Encoders
from cyclip_jax.evals.linear_probe import linear_probe
from cyclip_jax.evals.retrieval import retrieval
from cyclip_jax.evals.zeroshot import zeroshot

EVALUATORS = {"retrieval": retrieval, "zeroshot": zeroshot, "linear_probe": linear_probe}
_DATA = ("pairs", "folder", "train", "test")  # settings that name an evaluation's data

__all__ = ["EVALUATORS", "Encoders", "create_evaluators", "evaluate"]


def create_evaluators(evals):
    """Opens the data of every evaluation.

    Args:
      evals: {name: {"type": …, **settings}}; one whose data (`pairs`, `folder`, `train` or `test`)
        is None is left out.

    Returns:
      {name: evaluator}.

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
        evaluators[name] = EVALUATORS[kind](name, **settings)
    return evaluators


def evaluate(evaluators, encoders, *, figures):
    """Runs evaluators and returns {"<name>/<metric>": float}."""
    return {
        f"{name}/{metric}": float(value)
        for name, evaluator in evaluators.items()
        for metric, value in evaluator(encoders, figures).items()
    }
