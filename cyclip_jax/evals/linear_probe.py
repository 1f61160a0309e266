"""Linear probe: how well a linear classifier does on the image tower's frozen features."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cyclip_jax.data.order import order
from cyclip_jax.errors import UserError
from cyclip_jax.evals.datasets import labels_among, open_labelled
from cyclip_jax.evals.intervals import mean_with_interval
from cyclip_jax.evals.zeroshot import ranks_of_label


def linear_probe(
    name, *, train, test, batch_size=16, epochs=32, learning_rate=5e-3, weight_decay=0.01, seed=0
):
    """Trains a linear classifier on un-normalised image features and tests it (Goel et al. 2022).

    Args:
      name: of the evaluation, for messages.
      train, test: folders with a `labels.csv` (columns image, label); the classes are the labels
        of `train`.
      batch_size, epochs, learning_rate, weight_decay, seed: as `train_classifier`; the defaults
        are those of the published probe script.

    Returns:
      An evaluator (see evals/__init__.py) that gives `top1` and `top5` (fractions, those of k below
      the number of classes) and `chance_…`, what a random order of the classes gets; `images` and
      `train_images`, how many were scored and trained on.

    Raises:
      UserError: what is wrong with a folder, or no image per step.
    """
    if batch_size < 1:
        raise UserError(f"config.evals.{name}.batch_size {batch_size} must be at least 1")
    train_set = open_labelled(train, config_key=f"config.evals.{name}.train")
    test_set = open_labelled(test, config_key=f"config.evals.{name}.test")
    classes, test_labels = train_set.classes, labels_among(test_set, train_set)

    def evaluate(encoders, output):
        del output  # the results are numbers
        features, indices = encoders.image_features(train_set)
        test_features, test_indices = encoders.image_features(test_set)
        kernel, bias = train_classifier(
            features,
            train_set.labels[indices],
            len(classes),
            batch_size=batch_size,
            epochs=epochs,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            seed=seed,
        )
        # The bias as one more feature: a class's score is then an inner product.
        test_features = np.pad(test_features, ((0, 0), (0, 1)), constant_values=1)  # [M, D + 1]
        classifier = np.concatenate([kernel, bias[None]]).T  # [C, D + 1]
        ranks = ranks_of_label(test_features, classifier, test_labels[test_indices])
        results = {"images": len(ranks), "train_images": len(indices)}
        for k in (1, 5):
            if k < len(classes):
                results |= mean_with_interval(f"top{k}", ranks < k)
                results[f"chance_top{k}"] = k / len(classes)
        return results

    return evaluate


def train_classifier(
    features, labels, classes, *, batch_size, epochs, learning_rate, weight_decay, seed
):
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
    features, labels = jnp.asarray(features), jnp.asarray(labels)
    for epoch in range(epochs):
        rows = np.pad(order(seed, epoch, n), (0, steps * batch_size - n), constant_values=-1)
        state = run_epoch(state, rows.reshape(steps, batch_size), features, labels)
    return jax.device_get(state[0])
