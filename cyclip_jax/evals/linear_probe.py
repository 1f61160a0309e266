"""Linear probe: how well a linear classifier does on the image tower's frozen features."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cyclip_jax.data.order import order
from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.labelled import open_train_and_test
from cyclip_jax.evals.statistics.classification import mean_per_class, ranks_of_label
from cyclip_jax.evals.statistics.intervals import mean_with_interval
from cyclip_jax.evals.statistics.logistic import (
    check_regularization,
    chosen_regularization,
    class_rows,
    logistic_regression,
    with_constant,
)
from cyclip_jax.evals.statistics.splits import check_share, held_out

_METHODS = ("adamw", "lbfgs")


def linear_probe(
    name,
    *,
    train,
    test,
    method="adamw",
    batch_size=16,
    epochs=32,
    learning_rate=5e-3,
    weight_decay=0.01,
    regularization=None,
    validation_share=0.2,
    max_iterations=1000,
    normalize=False,
    seed=0,
    classes=None,
    image_key=None,
    label_key=None,
):
    """Trains a linear classifier on image features and tests it.

    Args:
      name: of the evaluation, for messages.
      train, test: labelled images, as `open_labelled` reads them; the classes are those of `train`.
      method: "adamw", epochs over batches as Goel et al. 2022; or "lbfgs", logistic regression to
        the minimum as Radford et al. 2021.
      batch_size, epochs, learning_rate, weight_decay: of "adamw", as `train_classifier`; the
        defaults are those of the published probe script.
      regularization: of "lbfgs", λ of `logistic_regression`; None chooses it by `sweep` on images
        held out from `train`, and then fits to all of `train`.
      validation_share: of each class's images that are held out for this.
      max_iterations: of "lbfgs".
      normalize: whether features get unit norm.
      seed: of the initial weights and the order of "adamw", or of the images held out.
      classes, image_key, label_key: of both data sets, see `open_labelled`.

    Returns:
      An evaluator (see evals/__init__.py) that gives `top1` and `top5` (fractions, those of k below
      the number of classes), `chance_…`, what a random order of the classes gets, and
      `mean_per_class`, as zeroshot; `images` and `train_images`, how many were scored and trained
      on; by "lbfgs" also `regularization` and `iterations`, max_iterations where they did not
      suffice. Detail of a sweep: `regularization_sweep.json`.

    Raises:
      UserError: what is wrong with the data or a setting, or no image is left to hold out.
    """
    key = f"config.evals.{name}"
    if method not in _METHODS:
        raise UserError(f"{key}.method is {method!r}; choose one of {', '.join(_METHODS)}")
    if batch_size < 1:
        raise UserError(f"{key}.batch_size {batch_size} must be at least 1")
    if method == "adamw" and regularization is not None:
        raise UserError(f"{key}.regularization is of method='lbfgs'; AdamW has weight_decay")
    check_regularization(key, regularization)
    check_share(key, validation_share)
    columns = {"classes": classes, "image_key": image_key, "label_key": label_key}
    data = open_train_and_test(name, train, test, **columns)
    names = data.train.classes
    limits = {"max_iterations": max_iterations}

    def hold_out(labels):
        return held_out(labels, validation_share, seed, f"{key}.train", "regularization")

    def choose(features, labels, output):
        is_held = hold_out(labels)
        fitting, choosing = ((features[part], labels[part]) for part in (~is_held, is_held))
        chosen, tried = chosen_regularization(*fitting, *choosing, len(names), **limits)
        table = [{"regularization": value, "validation_top1": tried[value]} for value in tried]
        output.json("regularization_sweep", table)
        return chosen

    if method == "lbfgs" and regularization is None:
        hold_out(data.train.labels)

    def evaluate(encoders, output):
        features, labels, test_features, test_labels = data.features(encoders, normalize)
        results = {"images": len(test_labels), "train_images": len(labels)}
        if method == "adamw":
            classifier = train_classifier(
                features,
                labels,
                len(names),
                batch_size=batch_size,
                epochs=epochs,
                learning_rate=learning_rate,
                weight_decay=weight_decay,
                seed=seed,
            )
        else:
            strength = regularization or choose(features, labels, output)
            fit = logistic_regression(features, labels, len(names), **limits)(strength)
            classifier = fit.kernel, fit.bias
            results |= {"regularization": strength, "iterations": fit.iterations}
        rows = with_constant(test_features)
        ranks = ranks_of_label(rows, class_rows(*classifier), test_labels)
        for k in (1, 5):
            if k < len(names):
                results |= mean_with_interval(f"top{k}", ranks < k)
                results[f"chance_top{k}"] = k / len(names)
        results["chance_mean_per_class"] = 1 / len(names)
        return results | mean_per_class(ranks < 1, test_labels, len(names))

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
