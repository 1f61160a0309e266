"""Cross-entropy over classes, with CLIPood's margin between those that are alike."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cyclip_jax.losses.terms import PAIRS, Reported, Term
from cyclip_jax.losses.tiles import at_least_float32, device_count, similarity, sum_over

HEAD = "class_head"  # the parameter of the model that holds the classes


def class_logits(
    image_embeds: Float[Array, "n d"],
    kernel: Float[Array, "d c"],
    bias: Float[Array, "c"],
    labels: Int[Array, "n"],
    logit_scale: Float[Array, ""] | float,
    *,
    margin: float,
) -> Float[Array, "n c"]:
    """s·(⟨f, w_c⟩ − λ⟨w_y, w_c⟩) + b_c, the margin metric softmax of CLIPood (Shu et al. 2023).

    What a class has in common with the picture's own counts less. With λ = 0 these are the scores
    of a linear layer. Of orthonormal w the own class has the score s(1 − λ) where f = w_y.

    Args:
      image_embeds: unit-norm image embeddings f, float [N, D].
      kernel: w as columns, [D, C]; for a margin of unit norm.
      bias: b, [C].
      labels: y, the picture's class, int [N].
      logit_scale: s, already exponentiated.
      margin: λ.
    """
    image_embeds, kernel, bias = at_least_float32(image_embeds, kernel, bias)
    scores = similarity(image_embeds, kernel.T)  # [N, C]
    if margin:
        scores -= margin * similarity(kernel.T[labels], kernel.T)
    return logit_scale * scores + bias


def class_term(*, weight: float, margin: float, label_smoothing: float) -> Term:
    """The cross-entropy of `class_logits` as a term, with the mean over the batch.

    Args:
      weight: of the term.
      margin: λ.
      label_smoothing: so much of the target is spread over all classes.
    """

    def measure(embeds, batch, scales, axis_names):
        head, labels = scales[HEAD], batch["labels"]
        kernel, bias = head["kernel"], head["bias"]
        scale = scales["logit_scale"]
        images = embeds["images"]
        rows = len(images) * device_count(axis_names)
        logits = class_logits(images, kernel, bias, labels, scale, margin=margin)
        log_shares = jax.nn.log_softmax(logits)
        own = jnp.take_along_axis(log_shares, labels[:, None], axis=1)[:, 0]
        target = (1 - label_smoothing) * own + label_smoothing * log_shares.mean(axis=1)
        # Without the margin, which is there to train by.
        plain = class_logits(images, kernel, bias, labels, scale, margin=0.0)
        hits = (plain.argmax(axis=1) == labels).astype(plain.dtype)
        loss = -sum_over(target.sum(), axis_names) / rows
        return [loss], {"class_accuracy": sum_over(hits.sum(), axis_names) / rows}

    return Term(
        measure=measure,
        weights={"class": weight},
        rows={"images": PAIRS["images"]},
        batch_keys=("labels",),
        biases=(HEAD,),
        is_of_published_code=False,
        reports={
            "class_loss": Reported(meaning="The cross-entropy over the classes"),
            "class_accuracy": Reported(
                meaning="The share of pictures whose own class has the best score",
                unit="share",
                better="more",
            ),
        },
    )
