"""What a run measured, as the model-index of a card: the metadata by which hubs show results."""

from collections.abc import Mapping
from typing import Any

from cyclip_jax.evals.flat import by_evaluation
from cyclip_jax.evals.metric import About, Metric
from cyclip_jax.interop.privacy import without_folders

# {type of an evaluation: (the task as hubs name it, in words)}. Others are about features.
_TASKS = {
    "zeroshot": ("zero-shot-image-classification", "Zero-shot image classification"),
    "robustness": ("zero-shot-image-classification", "Zero-shot image classification"),
    "retrieval": ("image-text-retrieval", "Image and text retrieval"),
    "sts": ("sentence-similarity", "Sentence similarity"),
}
# Settings of an evaluation that say which data it scores, the first first.
_DATA = ("folder", "pairs", "examples", "sentences", "test", "train")


def model_index(
    name: str,
    numbers: Mapping[str, float],
    abouts: Mapping[str, Mapping[str, About]],
    *,
    evaluations: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The headline metrics of a run's evaluations, as huggingface_hub's ModelCardData reads them.

    A metric's value is its number as the run wrote it, a share as a fraction of 1. Its 95 %
    interval stands in its name, and as numbers among its arguments.

    Args:
      name: of the model.
      numbers: {"<evaluation>/<metric>": number} of one step.
      abouts: {evaluation: {metric: About}}, what the evaluations said of their metrics.
      evaluations: {evaluation: its settings}.

    Returns:
      [{"name", "results": [{"task", "dataset", "metrics"}]}]; [] where nothing was measured.
    """
    results = []
    for evaluation, metrics in by_evaluation(numbers, abouts).items():
        told = [
            _metric(metric_name, metric)
            for metric_name, metric in metrics.items()
            if metric.is_headline and metric.is_finite
        ]
        if told:
            settings = evaluations.get(evaluation, {})
            results.append({**_task_and_data(evaluation, settings), "metrics": told})
    return [{"name": name, "results": results}] if results else []


def _task_and_data(evaluation: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(settings.get("type", "image-text"))
    task, words = _TASKS.get(kind, ("feature-extraction", kind))
    data = next((settings[key] for key in _DATA if isinstance(settings.get(key), str)), evaluation)
    # An evaluation's name keeps apart what is scored twice on the same data.
    return {
        "task": {"type": task, "name": words},
        "dataset": {"type": without_folders(data), "name": evaluation, "config": evaluation},
    }


def _metric(name: str, metric: Metric) -> dict[str, Any]:
    told = {"type": name, "value": metric.value, "name": name}
    if metric.bounds is not None:
        low, high = metric.bounds
        told["name"] = f"{name}: {metric.with_interval()}, with its 95 % interval"
        told["args"] = {"interval_low": low, "interval_high": high}
    return told
