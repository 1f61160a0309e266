"""Which checkpoint has the best value of a metric so far."""

import os
from collections.abc import Collection, Mapping

from etils import epath

from cyclip_jax.evals.metric import Better, Metric
from cyclip_jax.evals.output import read_abouts
from cyclip_jax.runtime.agreement import decided_by_process_zero
from cyclip_jax.workdir.layout import EVALS
from cyclip_jax.workdir.metrics import read_metrics


class BestSoFar:
    """The values of config.keep_best by step, from metrics.jsonl and from each evaluation.

    Whether more or less is better, the metric says itself: in an evaluation, and in the file that
    the evaluation leaves.

    Args:
      name: "<evaluation>/<metric>"; None is no metric.
      workdir: the run's directory.
      until: the step that the run goes on from. What is known of later ones is trained anew.
    """

    def __init__(self, name: str | None, workdir: str | os.PathLike[str], *, until: int) -> None:
        self.name = name
        self._evaluation, _, self._metric = (name or "").partition("/")
        self._values: dict[int, float] = {}
        self._better: Better = None
        if name is None:
            return
        told = read_abouts(epath.Path(workdir) / EVALS).get(self._evaluation, {})
        if self._metric in told:
            self._better = told[self._metric].better
        for line in read_metrics(workdir):
            if line["step"] <= until and line.get(name) is not None:
                self._values[line["step"]] = line[name]

    def add(self, step: int, evaluations: Mapping[str, Mapping[str, Metric]]) -> str | None:
        """Takes the evaluations of a step; returns why the metric is not among them, or None."""
        metrics = evaluations.get(self._evaluation)
        if self.name is None or metrics is None:  # that one has failed, and has said so
            return None
        metric = metrics.get(self._metric)
        if metric is None:
            return (
                f"no checkpoint is kept for config.keep_best {self.name!r}: the evaluation "
                f"{self._evaluation!r} measures {', '.join(metrics)}. Set it to one of these; the "
                "same command continues with another"
            )
        if metric.better is None:
            return (
                f"no checkpoint is kept for config.keep_best {self.name!r}: neither more nor less "
                "of it is better. Set it to another metric; the same command continues with that"
            )
        self._better = metric.better
        if metric.is_finite:
            self._values[step] = float(metric.value)
        return None

    def among(self, steps: Collection[int]) -> int | None:
        """The first of those steps that have the best value; None where none has any."""
        known = sorted(step for step in steps if step in self._values)
        if not known or self._better is None:
            return None
        return (max if self._better == "more" else min)(known, key=lambda s: self._values[s])

    def is_at(self, step: int) -> bool:
        """Whether a step has the best value so far, by what process 0 knows."""
        if self.name is None:
            return False
        return bool(decided_by_process_zero(lambda: int(self.among(self._values) == step)))

    def summary(self, steps: Collection[int]) -> str | None:
        """The best value, among the checkpoints of these steps, in a sentence."""
        step = self.among(steps)
        if step is None:
            return None
        return f"the best {self.name}, {self._values[step]:.4g}, is that of checkpoint {step}"
