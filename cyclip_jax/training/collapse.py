"""The alarm of a run that trains and learns nothing: its embeddings are equal, or as good as."""

from collections.abc import Iterable, Mapping
from typing import Any

from cyclip_jax.training.objective import Objective

COLLAPSED = "collapsed"  # the metric, 1 or 0, of logged steps from FIRST_STEP on
FIRST_STEP = 100  # a young model may look like this
MARGIN = 0.01  # relative distance of a term from its value for equal embeddings
LEAST_RANK = 1.02  # a mean squared cosine of 0.98; models begin with 1.05 and more

ADVICE = (
    "Try in another --workdir: cyclic terms that grow in, over half of the run "
    "(config.loss.cyclic_warmup_steps); random crops "
    "(config.data.augmentation=random_resized_crop); another config.optimizer.learning_rate or a "
    "longer config.optimizer.warmup_steps. configs/own_data.py does this for small data. Look "
    "also whether the captions belong to their pictures"
)


class CollapseAlarm:
    """Watches the metrics of a run for embeddings that are all equal, and says so once.

    Args:
      objective: its terms know their values for equal embeddings.
      batch_size: pairs of the global batch.
      warmup_steps: of the learning rate; a term is judged after them.
      is_told: whether the run has been told already, before it was continued.
    """

    def __init__(
        self, objective: Objective, *, batch_size: int, warmup_steps: int, is_told: bool
    ) -> None:
        self._equal = {name: value(batch_size) for name, value in objective.of_equal_embeds.items()}
        self._warmup_steps, self._is_told = warmup_steps, is_told
        self._first_step = objective.first_step

    def check(self, step: int, metrics: Mapping[str, Any]) -> tuple[dict[str, float], str | None]:
        """Judges a logged step.

        Args:
          step: the number of steps done.
          metrics: the step's metrics.

        Returns:
          (metrics to add, what a person is to be told or None).
        """
        # Pairs after sentences begin as a new run does.
        of_stage = step - self._first_step if step > self._first_step else step
        if of_stage < FIRST_STEP:
            return {}, None
        signs = []
        for name, equal in self._equal.items() if of_stage >= self._warmup_steps else ():
            if name in metrics and abs(metrics[name] - equal) <= MARGIN * equal:
                signs.append(
                    f"{name} is {metrics[name]:.4g}, and equal embeddings have {equal:.4g}"
                )
        if metrics["embedding_rank"] <= LEAST_RANK:
            signs.append(
                f"embedding_rank is {metrics['embedding_rank']:.4g}, and equal embeddings have 1"
            )
        told = None
        if signs and not self._is_told:
            self._is_told = True
            told = (
                f"ALARM: at step {step} the model has learned nothing: {'; '.join(signs)}. {ADVICE}"
            )
        return {COLLAPSED: float(bool(signs))}, told


def collapsed_steps(lines: Iterable[Mapping[str, Any]]) -> list[int]:
    """The steps of a run's lines of metrics at which its embeddings counted as equal."""
    return [line["step"] for line in lines if line.get(COLLAPSED)]
