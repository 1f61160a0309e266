"""Sentence embeddings: the contrastive loss of a sentence with itself, or with its positive."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt32

from cyclip_jax.losses.contrastive import FORWARD, info_nce
from cyclip_jax.losses.terms import Reported, Row, Rows, Term, Weight, weight_reports

_STREAM = 0x5E27  # of the step's key, apart from what other parts draw of it
# The embeddings of each kind of training: {name: key of the batch}. Anchors come first.
UNSUPERVISED = {"sentences": "sentences", "sentences_again": "sentences"}
PAIRED = {"sentences": "sentences", "positives": "positives"}
TRIPLETS = {**PAIRED, "negatives": "negatives"}


def sentence_term(
    *,
    weight: Weight,
    kind: str,
    temperature: float,
    dropout: float,
    hard_negative_weight: float = 1.0,
    warmup_steps: int = 0,
) -> Term:
    """The loss of SimCSE (Gao et al. 2021) as a term, over the global batch, with true gradients.

    Unsupervised it is eq. 4, −1/M Σ_i log e^{s⟨t_i,t_i′⟩} / Σ_j e^{s⟨t_i,t_j′⟩}, in which t_i and
    t_i′ are one sentence under two masks of dropout. Supervised it is eq. 5, in which a positive
    stands in place of t_i′ and hard negatives are chosen among as well, the own one with the weight
    α. M are the sentences of the global batch and s = 1/temperature.

    Args:
      weight: of the loss, beside CyCLIP's.
      kind: "unsupervised", "pairs" or "triplets".
      temperature: of the similarities; it is not learned.
      dropout: share of the numbers that is dropped within the text tower.
      hard_negative_weight: α.
      warmup_steps: over so many steps from the first that sees pairs the weight grows from 0.
    """
    names = {"unsupervised": UNSUPERVISED, "pairs": PAIRED, "triplets": TRIPLETS}[kind]
    anchors, keys, *further = names

    def measure(embeds, batch, scales, axis_names):
        del scales
        loss, (accuracy,) = info_nce(
            embeds[anchors],
            embeds[keys],
            1 / temperature,
            *(embeds[name] for name in further),
            directions=FORWARD,
            own_further_weight=hard_negative_weight,
            axis_names=axis_names,
        )
        repeated = repeated_rows(batch["sentences"], axis_names)
        return (loss,), {"sentence_accuracy": accuracy, "duplicate_sentences": repeated}

    return Term(
        measure=measure,
        weights={"sentence": weight},
        warmup_steps=warmup_steps,
        reports={
            "sentence_loss": Reported(meaning="The contrastive loss of the sentences"),
            "sentence_accuracy": Reported(
                meaning="The share of sentences that are nearest to their own key in the batch",
                unit="share",
                better="more",
            ),
            "duplicate_sentences": Reported(
                meaning="How many sentences of the batch stand in it more than once, and so are "
                "each other's false negatives",
                unit="number",
            ),
            **weight_reports(["sentence"], warmup_steps),
        },
        rows={
            name: Row("sentences", key, f"{name}_masks" if dropout else None, dropout)
            for name, key in names.items()
        },
        batch_keys=("sentences",),
        draw=functools.partial(mask_keys, names=tuple(names)) if dropout else None,
        scales=(),
        is_of_published_code=False,
    )


def mask_keys(key: Array, batch: Rows, names: Sequence[str]) -> dict[str, UInt32[Array, "m 2"]]:
    """The keys of dropout of a step's sentences.

    Args:
      key: the step's.
      batch: holds "sentences", int [M, L].
      names: of the embeddings; each has masks of its own.

    Returns:
      {"<name>_masks": the data of a key for each row, uint32 [M, 2]}.
    """
    key = jax.random.fold_in(key, _STREAM)
    rows = jnp.arange(batch["sentences"].shape[0])

    def of_copy(copy):
        own = jax.random.fold_in(key, copy)
        return jax.vmap(lambda row: jax.random.key_data(jax.random.fold_in(own, row)))(rows)

    return {f"{name}_masks": of_copy(copy) for copy, name in enumerate(names)}


def repeated_rows(tokens: Int[Array, "n l"], axis_names: tuple[str, ...] = ()) -> Array:
    """How many rows of the global batch equal another one, a float scalar.

    Args:
      tokens: int [N, L]; inside shard_map the device's rows, [n, L].
      axis_names: the mesh axes that the rows are split over; () is one device.
    """
    everywhere = tokens
    if axis_names:
        everywhere = jax.lax.all_gather(tokens, axis_names, tiled=True)
    same = jnp.all(tokens[:, None] == everywhere[None], axis=-1)  # [n, N]
    repeated = jnp.sum(same.sum(axis=1) > 1).astype(jnp.float32)
    return jax.lax.psum(repeated, axis_names) if axis_names else repeated
