"""Linear probe: how well a classifier does that AdamW trains on the image tower's frozen features.

It is the probe of Goel et al. 2022. For that of Radford et al. 2021 see logistic_probe.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from cyclip_jax.data.order import order
from cyclip_jax.data.places import DataPath
from cyclip_jax.evals.checks import check_at_least, check_named, check_types
from cyclip_jax.evals.data.labelled import check_train_and_test, open_train_and_test
from cyclip_jax.evals.evaluator import Evaluator, Needs, Opened
from cyclip_jax.evals.metric import count
from cyclip_jax.evals.statistics.probes import probe_scores
from cyclip_jax.files import FilePath


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """Trains a linear classifier on image features over epochs by AdamW, and tests it.

    Attributes:
      name: of the evaluation, for messages.
      train, test: labelled images, as `open_labelled` reads them; the classes are those of `train`.
      batch_size, epochs, learning_rate, weight_decay: as `train_classifier`; the defaults are those
        of the published probe script.
      normalize: whether features get unit norm.
      seed: of the initial weights and of the order.
      classes, image_key, label_key: of both data sets, see `open_labelled`.

    Raises:
      UserError: the settings alone show that something is wrong.
    """

    name: str
    _: dataclasses.KW_ONLY
    train: DataPath
    test: DataPath
    batch_size: int = 16
    epochs: int = 32
    learning_rate: float = 5e-3
    weight_decay: float = 0.01
    normalize: bool = False
    seed: int = 0
    classes: FilePath | None = None
    image_key: str | None = None
    label_key: str | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_at_least(self, 1, "batch_size", "epochs")
        check_at_least(self, 0, "learning_rate", "weight_decay", "seed")
        check_named(self, "classes")
        check_train_and_test(self)

    def open(self) -> Evaluator:
        """Opens the data.

        Returns:
          An evaluator (see evals/__init__.py) that gives `top1` and `top5` (fractions, those of k
          below the number of classes), `chance_…`, what a random order of the classes gets, and
          `mean_per_class`, as zeroshot; `images` and `train_images`, how many were scored and
          trained on. Outcomes: each of `images` has its `top<k>` and its `label`.

        Raises:
          UserError: what is wrong with the data.
        """
        data = open_train_and_test(self, classes=self.classes)

        def evaluate(encoders, output):
            features = data.features(encoders, self.normalize)
            kernel, bias = train_classifier(
                features.train,
                features.train_labels,
                len(data.train.classes),
                batch_size=self.batch_size,
                epochs=self.epochs,
                learning_rate=self.learning_rate,
                weight_decay=self.weight_decay,
                seed=self.seed,
            )
            return {
                "images": count(len(features.test)),
                "train_images": count(len(features.train)),
                **probe_scores(features, kernel, bias, output),
            }

        return Opened(evaluate, lambda: Needs([data.train, data.test]))


def train_classifier(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, "n"],
    classes: int,
    *,
    batch_size: int,
    epochs: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
) -> tuple[Float[np.ndarray, "d c"], Float[np.ndarray, "c"]]:
    """Logistic regression by AdamW, from PyTorch's initial weights of a linear layer.

    Args:
      features: float [N, D].
      labels: int [N], below C.
      classes: their number C.
      batch_size: images per step; the last batch of an epoch may be smaller.
      epochs: passes over the features, in an order that is a pure function of (seed, epoch).
      learning_rate: at the start; it falls to zero along half a cosine.
      weight_decay: of kernel and bias.
      seed: of the initial weights and of the order.

    Returns:
      (kernel [D, C], bias [C]) in NumPy.
    """
    n, d = features.shape
    steps = -(-n // batch_size)
    schedule = optax.cosine_decay_schedule(learning_rate, epochs * steps)
    optimizer = optax.adamw(schedule, weight_decay=weight_decay)

    @jax.jit
    def run_epoch(state, batches, features, labels):
        def loss(params, rows):
            kernel, bias = params
            logits = jnp.matmul(features[rows], kernel, precision=jax.lax.Precision.HIGHEST) + bias
            entropies = optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows])
            return jnp.mean(entropies, where=rows >= 0)  # a row of -1 only fills the last batch

        def step(state, rows):
            params, opt_state = state
            grads = jax.grad(loss)(params, rows)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        return jax.lax.scan(step, state, batches)[0]

    rng, bound = np.random.default_rng(seed), d**-0.5
    shapes = (d, classes), (classes,)
    params = tuple(rng.uniform(-bound, bound, shape).astype(features.dtype) for shape in shapes)
    state = params, optimizer.init(params)
    shown = jnp.asarray(features), jnp.asarray(labels)
    for epoch in range(epochs):
        rows = np.pad(order(seed, epoch, n), (0, steps * batch_size - n), constant_values=-1)
        state = run_epoch(state, rows.reshape(steps, batch_size), *shown)
    return jax.device_get(state[0])
