"""Results in the layout of CLIP_benchmark, for its tables and notebooks."""

from collections.abc import Mapping
from typing import Any

from cyclip_jax.evals.metric import Metric

FOLDER = "clip_benchmark"  # beside the folders of the evaluations
_PROBE = [("lp_acc1", "top1"), ("lp_acc5", "top5"), ("lp_mean_per_class_recall", "mean_per_class")]
# {type: (their task, [(their metric, ours)])}; of one picture and several captions both are one.
_TASKS = {
    "zeroshot": (
        "zeroshot_classification",
        [("acc1", "top1"), ("acc5", "top5"), ("mean_per_class_recall", "mean_per_class")],
    ),
    "linear_probe": ("linear_probe", _PROBE),
    "logistic_probe": ("linear_probe", _PROBE),
    "retrieval": (
        "zeroshot_retrieval",
        [
            (f"{target}_retrieval_recall@{k}", f"{name}_recall@{k}")
            for k in (1, 5, 10)
            for target, name in (("image", "text_to_image"), ("text", "image_to_text"))
        ],
    ),
    "compositional": (
        "image_caption_selection",
        [
            ("acc", "accuracy"),
            ("text_acc", "accuracy"),
            ("acc", "group_score"),
            ("text_acc", "text_score"),
            ("image_acc", "image_score"),
        ],
    ),
}


def clip_benchmark_results(
    name: str, kind: str, metrics: Mapping[str, Metric], *, model: str, checkpoint: str
) -> dict[str, Any] | None:
    """One evaluation's results as CLIP_benchmark's `clip_benchmark eval` writes them.

    Args:
      name: of the evaluation, which stands for the data set.
      kind: its type; CLIP_benchmark has some of them.
      metrics: {our name: Metric}.
      model: name of the architecture.
      checkpoint: where the weights are from.

    Returns:
      A dict for JSON, or None where CLIP_benchmark has no such task.
    """
    if kind not in _TASKS:
        return None
    task, names = _TASKS[kind]
    return {
        "dataset": name,
        "model": model,
        "pretrained": checkpoint,
        "task": task,
        "metrics": {theirs: metrics[ours].value for theirs, ours in names if ours in metrics},
        "language": "en",
    }
