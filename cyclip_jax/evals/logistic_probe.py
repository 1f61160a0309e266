"""Logistic probe: how well logistic regression does on the image tower's frozen features.

It is the linear probe of Radford et al. 2021. For that of Goel et al. 2022 see linear_probe.py.
"""

import dataclasses

from cyclip_jax.data.places import DataPath
from cyclip_jax.evals.checks import check_at_least, check_named, check_types
from cyclip_jax.evals.data.labelled import check_train_and_test, open_train_and_test
from cyclip_jax.evals.evaluator import Evaluator, Needs, Opened
from cyclip_jax.evals.metric import Metric, count
from cyclip_jax.evals.statistics.logistic import (
    check_regularization,
    chosen_regularization,
    logistic_regression,
)
from cyclip_jax.evals.statistics.probes import probe_scores
from cyclip_jax.evals.statistics.splits import check_share, held_out
from cyclip_jax.files import FilePath


@dataclasses.dataclass(frozen=True)
class LogisticProbe:
    """Fits logistic regression to image features by L-BFGS to the minimum, and tests it.

    Attributes:
      name: of the evaluation, for messages.
      train, test: labelled images, as `open_labelled` reads them; the classes are those of `train`.
      regularization: λ of `logistic_regression`; None chooses it by `sweep` on images held out from
        `train`, and then fits to all of `train`.
      validation_share: of each class's images that are held out for this.
      max_iterations: of L-BFGS.
      normalize: whether features get unit norm.
      seed: of the images held out.
      classes, image_key, label_key: of both data sets, see `open_labelled`.

    Raises:
      UserError: the settings alone show that something is wrong.
    """

    name: str
    _: dataclasses.KW_ONLY
    train: DataPath
    test: DataPath
    regularization: float | None = None
    validation_share: float = 0.2
    max_iterations: int = 1000
    normalize: bool = False
    seed: int = 0
    classes: FilePath | None = None
    image_key: str | None = None
    label_key: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        key = f"config.evals.{self.name}"
        check_regularization(key, self.regularization)
        check_share(key, self.validation_share)
        check_at_least(self, 1, "max_iterations")
        check_named(self, "classes")
        check_train_and_test(self)

    def open(self) -> Evaluator:
        """Opens the data.

        Returns:
          An evaluator (see evals/__init__.py) that gives what `LinearProbe` does, and besides
          `regularization` and `iterations`, which is max_iterations where they did not suffice.
          Detail of a sweep: `regularization_sweep.json`.

        Raises:
          UserError: what is wrong with the data, or no image is left to hold out.
        """
        data = open_train_and_test(self, classes=self.classes)
        names = data.train.classes
        limits = {"max_iterations": self.max_iterations}

        def hold_out(labels):
            return held_out(
                labels,
                self.validation_share,
                self.seed,
                f"config.evals.{self.name}.train",
                "regularization",
            )

        def choose(features, labels, output):
            is_held = hold_out(labels)
            fitting, choosing = ((features[part], labels[part]) for part in (~is_held, is_held))
            chosen, tried = chosen_regularization(*fitting, *choosing, len(names), **limits)
            table = [{"regularization": value, "validation_top1": tried[value]} for value in tried]
            output.json("regularization_sweep", table)
            return chosen

        if self.regularization is None:
            hold_out(data.train.labels)

        def evaluate(encoders, output):
            features = data.features(encoders, self.normalize)
            shown = features.train, features.train_labels
            strength = self.regularization or choose(*shown, output)
            fit = logistic_regression(*shown, len(names), **limits)(strength)
            return {
                "images": count(len(features.test)),
                "train_images": count(len(features.train)),
                "regularization": Metric(strength),
                "iterations": count(fit.iterations),
                **probe_scores(features, fit.kernel, fit.bias, output),
            }

        return Opened(evaluate, lambda: Needs([data.train, data.test]))
