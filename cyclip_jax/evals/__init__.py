"""Evaluators by name. An evaluator knows no model: it gets encoders and its own arguments."""

from cyclip_jax.errors import UserError
from cyclip_jax.evals.encoders import Encoders
from cyclip_jax.evals.retrieval import retrieval
from cyclip_jax.evals.zeroshot import zeroshot

# {type: function(encoders, *, output, **arguments) -> {name: number}}; `output` is a path prefix
# for what is not a number.
EVALUATORS = {"retrieval": retrieval, "zeroshot": zeroshot}

__all__ = ["EVALUATORS", "Encoders", "check_settings", "evaluate"]


def check_settings(evals):
    """Raises UserError where `config.evals` names an evaluator that there is not."""
    for name, settings in evals.items():
        if settings.get("type") not in EVALUATORS:
            raise UserError(
                f"config.evals.{name}.type is {settings.get('type')!r}; "
                f"choose one of {', '.join(EVALUATORS)}"
            )


def evaluate(evals, encoders, *, figures):
    """Runs every evaluator that has data.

    Args:
      evals: {name: {"type": …, **arguments}}; one whose `pairs` or `folder` is None is left out.
      encoders: an Encoders.
      figures: path of the directory for pictures.

    Returns:
      {"<name>/<metric>": float}.
    """
    results = {}
    for name, settings in evals.items():
        arguments = {key: value for key, value in settings.items() if key != "type"}
        if any(arguments.get(key, "") is None for key in ("pairs", "folder")):
            continue
        numbers = EVALUATORS[settings["type"]](encoders, output=figures / name, **arguments)
        results.update({f"{name}/{key}": float(value) for key, value in numbers.items()})
    return results
