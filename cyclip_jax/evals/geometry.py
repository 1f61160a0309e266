"""The shape of the two clouds of embeddings, and where they lie to one another.

In all functions `images` and `texts` are the unit-norm embeddings of N pairs, float64 [N, D].
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from cyclip_jax.data.places import DataPath
from cyclip_jax.errors import UserError
from cyclip_jax.evals.checks import check_named, check_types
from cyclip_jax.evals.data.image_set import first_captions
from cyclip_jax.evals.data.labelled import check_images, open_images
from cyclip_jax.evals.data.superclasses import Superclasses, normal, read_superclasses
from cyclip_jax.evals.evaluator import Evaluator, Needs, Opened
from cyclip_jax.evals.known_metrics import KNOWN
from cyclip_jax.evals.metric import Metric, count
from cyclip_jax.evals.statistics.classification import with_constant
from cyclip_jax.evals.statistics.intervals import mean_over_pairs_with_interval, mean_with_interval
from cyclip_jax.evals.statistics.uniformity import gaussian_uniformity

_TILE_ROWS = 1024
# Pairs that the report draws: points on its map, rows of its matrices of similarities.
_MAPPED, _COMPARED = 400, 96
# Directions of less variance than this share of the largest hold rounding, and are left out.
_FLAT = 1e-6
# The variance that float32 alone gives to a direction of unit-norm embeddings, and some more.
_ROUNDING = 1e-12
# What a model whose run has diverged has too: NaN.
_OF_EVERY_MODEL = ("alignment", "uniformity", "modality_gap")
_OF_EVERY_MODEL += ("image_uniformity", "text_uniformity")


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Measures held-out pairs' embeddings; a picture with several captions counts once.

    Attributes:
      name: of the evaluation, for messages.
      pairs: file of images and captions, as data.train.
      reference: pairs whose mean and covariance whiten these; default the other half of `pairs`.
      image_key, caption_key: as in config.data.
      superclasses: by which the report orders and marks the pairs, see `read_superclasses`.

    Raises:
      UserError: the settings alone show that something is wrong.
    """

    name: str
    _: dataclasses.KW_ONLY
    pairs: DataPath
    reference: DataPath | None = None
    image_key: str | None = None
    caption_key: str | Sequence[str] | None = None
    superclasses: Superclasses | None = None

    def __post_init__(self) -> None:
        check_types(self)
        check_named(self, "superclasses")
        for key in ("pairs", "reference"):
            if (path := getattr(self, key)) is not None:
                check_images(path, config_key=f"config.evals.{self.name}.{key}", **self._columns)

    @property
    def _columns(self):
        return {"image_key": self.image_key, "caption_key": self.caption_key}

    def open(self) -> Evaluator:
        """Opens the data.

        Returns:
          An evaluator (see evals/__init__.py) that gives `alignment`, the mean of ⟨I_j,T_j⟩, and
          `uniformity`, the log of the mean over j ≠ k of exp(−⟨I_j,T_k⟩) (Goel et al. 2022, section
          4.4); `image_uniformity` and `text_uniformity`, of each modality by itself and in another
          form (see `gaussian_uniformity`); `modality_gap`, the distance between the means (Liang et
          al. 2022), and `modality_separability`, the share of embeddings that a least-squares
          classifier fitted on one half of the pairs puts into their modality in the other;
          `image_effective_rank` and `text_effective_rank` (see `effective_rank`);
          `image_conformity` and `text_conformity`, the mean cosine to the others of the modality,
          and `conformity_correlation`, over the pairs (Levi and Gilboa 2024);
          `image_log_likelihood` and `text_log_likelihood`, means in nats per dimension (see
          `whitened_log_likelihood`; Betser et al. 2025); `pairs`. Intervals stand beside the
          alignment, the gap, the conformities and the likelihoods. Outcomes: each of `pairs` has
          its part in these five kinds, and whether its two embeddings were told apart,
          `modality_separability` [N, 2].

        Raises:
          UserError: what is wrong with the data, or, on evaluation, fewer than four pictures.
        """
        key = f"config.evals.{self.name}"
        pair_set = open_images(self.pairs, config_key=f"{key}.pairs", **self._columns)
        reference_set = None
        if self.reference is not None:
            reference_set = open_images(
                self.reference, config_key=f"{key}.reference", **self._columns
            )
        by_class = {}
        if self.superclasses is not None:
            by_class = read_superclasses(self.superclasses, config_key=f"{key}.superclasses")

        def evaluate(encoders, output):
            embeds = encoders.pair_embeds(pair_set)
            images, texts = embeds.images.astype(np.float64), embeds.texts.astype(np.float64)
            if len(images) < 4:
                raise UserError(f"{self.pairs} has fewer than four pictures that can be read")
            if not (np.isfinite(images).all() and np.isfinite(texts).all()):  # the run has diverged
                return {name: KNOWN[name].metric(np.nan) for name in _OF_EVERY_MODEL}
            references = None
            if reference_set is not None:
                found = encoders.pair_embeds(reference_set)
                references = found.images.astype(np.float64), found.texts.astype(np.float64)
            metrics, outcomes = _measured(images, texts, references)
            output.outcomes({"pairs": {"index": embeds.index, **outcomes}})
            groups = [by_class.get(normal(caption), "") for caption in embeds.captions]
            _write_drawn(output, images, texts, np.array(embeds.captions), np.array(groups))
            return metrics

        sets = [pair_set, *([] if reference_set is None else [reference_set])]
        return Opened(evaluate, lambda: Needs(sets, list(map(first_captions, sets))))


def _measured(images, texts, references):
    """({name: Metric}, {name: each pair's part in it [N, …]}) of embeddings float64 [N, D].

    The references are images and texts [M, D] that whiten these; None is the other half.
    """
    outcomes: dict[str, np.ndarray] = {
        "alignment": np.sum(images * texts, axis=1),
        "modality_gap": along_the_gap(images, texts),
        "modality_separability": told_apart(images, texts),
        "image_conformity": conformity(images),
        "text_conformity": conformity(texts),
    }
    metrics = {
        "pairs": count(len(images)),
        "uniformity": KNOWN["uniformity"].metric(uniformity(images, texts)),
    }
    for name, embeds in (("image_uniformity", images), ("text_uniformity", texts)):
        metrics[name] = KNOWN[name].metric(gaussian_uniformity(embeds))
    for name in ("alignment", "modality_gap"):
        metrics[name] = mean_with_interval(outcomes[name], about=KNOWN[name])
    told = float(outcomes["modality_separability"].mean())
    metrics["modality_separability"] = KNOWN["modality_separability"].metric(told)
    for name in ("image_conformity", "text_conformity"):
        metrics[name] = mean_over_pairs_with_interval(outcomes[name], KNOWN[name])
    of_images, of_texts = outcomes["image_conformity"], outcomes["text_conformity"]
    if of_images.std() > 0 and of_texts.std() > 0:
        correlation = float(np.corrcoef(of_images, of_texts)[0, 1])
        metrics["conformity_correlation"] = Metric(correlation)
    for place, (modality, embeds) in enumerate((("image", images), ("text", texts))):
        metrics[f"{modality}_effective_rank"] = Metric(effective_rank(embeds))
        if references is None:
            likelihoods = _of_halves(embeds)
        else:
            likelihoods = whitened_log_likelihood(embeds, references[place])
        name = f"{modality}_log_likelihood"
        outcomes[name] = likelihoods
        metrics[name] = mean_with_interval(likelihoods, about=KNOWN[name])
    return metrics, outcomes


def uniformity(
    images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "n d"], tile_rows: int = _TILE_ROWS
) -> float:
    """Log of the mean over j ≠ k of exp(−⟨I_j,T_k⟩), in tiles.

    Args:
      images, texts: [N, D].
      tile_rows: images of a tile.
    """
    n, total = len(images), 0.0
    for first in range(0, n, tile_rows):
        total += np.exp(-images[first : first + tile_rows] @ texts.T).sum()
    total -= np.exp(-np.sum(images * texts, axis=1)).sum()
    return float(np.log(total / (n * (n - 1))))


def along_the_gap(
    images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "n d"]
) -> Float[np.ndarray, "n"]:
    """Each pair's difference along the difference of the modalities' means, [N].

    Its mean is the modality gap, the distance between the means, and has the gap's interval: a norm
    of resampled means would be too large. Where there is no gap but noise, both are too large all
    the same.
    """
    differences = images - texts
    mean = differences.mean(axis=0)
    gap = np.linalg.norm(mean)
    return differences @ (mean / gap) if gap > 0 else np.zeros(len(differences))


def told_apart(
    images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "n d"]
) -> Bool[np.ndarray, "n 2"]:
    """Which image and which text of each pair a hyperplane puts into its modality, bool [N, 2].

    The hyperplane is fitted on the other half of the pairs. It is that of least squares against ±1,
    which is Fisher's discriminant.
    """
    is_right = np.zeros((len(images), 2), bool)
    for fitted in (0, 1):
        rows = np.concatenate([images[fitted::2], texts[fitted::2]])
        targets = np.repeat([1.0, -1.0], [len(images[fitted::2]), len(texts[fitted::2])])
        solution = np.linalg.lstsq(with_constant(rows), targets, rcond=_FLAT)[0]
        tested = slice(1 - fitted, None, 2)
        is_right[tested, 0] = with_constant(images[tested]) @ solution > 0
        is_right[tested, 1] = with_constant(texts[tested]) @ solution < 0
    return is_right


def effective_rank(embeds: Float[np.ndarray, "n d"]) -> float:
    """exp of the entropy of the centred embeddings' singular values (Roy and Vetterli 2007).

    It is 0 where the embeddings, [N, D], are all the same.
    """
    variances = np.linalg.eigvalsh(np.cov(embeds.T, bias=True))
    values = np.sqrt(variances[variances > _ROUNDING])
    shares = values / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares)))) if len(values) else 0.0


def conformity(embeds: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
    """Mean cosine of each embedding, unit-norm [N, D], with the others of its modality, [N].

    It is that of Levi and Gilboa 2024.
    """
    return (embeds @ embeds.sum(axis=0) - 1) / (len(embeds) - 1)


def whitened_log_likelihood(
    embeds: Float[np.ndarray, "n d"], reference: Float[np.ndarray, "m d"]
) -> Float[np.ndarray, "n"]:
    """Log-likelihood of embeddings under the normal distribution fitted to others.

    Whitened by the reference's mean and covariance, y has ℓ = −½(d log 2π + ‖y‖²) (Betser et al.
    2025, eq. 6); directions in which the reference does not vary are left out.

    Args:
      embeds: [N, D].
      reference: [M, D].

    Returns:
      ℓ/d, nats per dimension, [N]; −½(log 2π + 1) = −1.419 on average where the embeddings are
      distributed as the reference, NaN where that does not vary at all.
    """
    mean = reference.mean(axis=0)
    variances, directions = np.linalg.eigh(np.cov(reference.T, bias=True))
    kept = variances > max(_FLAT * variances[-1], _ROUNDING)
    if not kept.any():
        return np.full(len(embeds), np.nan)
    whitened = (embeds - mean) @ (directions[:, kept] / np.sqrt(variances[kept]))  # [N, d]
    return -0.5 * (np.log(2 * np.pi) + np.mean(whitened**2, axis=1))


def plane(
    images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "n d"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, "n 2"]]:
    """Both modalities on the plane of their two principal components: ([N, 2], [N, 2])."""
    both = np.concatenate([images, texts])
    centred = both - both.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)
    axes = directions[:, :-3:-1]  # the largest first, [D, 2]
    # Of either sign: the largest entry is made positive, so that runs can be compared.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])
    coordinates = centred @ axes
    return coordinates[: len(images)], coordinates[len(images) :]


def _of_halves(embeds):
    """Whitened log-likelihoods of each half by the other, [N]."""
    likelihoods = np.empty(len(embeds))
    for half in (0, 1):
        likelihoods[half::2] = whitened_log_likelihood(embeds[half::2], embeds[1 - half :: 2])
    return likelihoods


def _write_drawn(output, images, texts, captions, groups):
    """The details that the report draws, of pairs drawn at random."""
    shuffled = np.random.default_rng(0).permutation(len(images))
    image_xy, text_xy = plane(images, texts)
    rows = np.sort(shuffled[:_MAPPED])
    output.arrays(
        "map",
        image_xy=image_xy[rows],
        text_xy=text_xy[rows],
        names=captions[rows],
        groups=groups[rows],
    )
    rows = sorted(shuffled[:_COMPARED], key=lambda row: (groups[row], captions[row]))
    output.arrays(
        "similarities",
        image_image=images[rows] @ images[rows].T,
        text_text=texts[rows] @ texts[rows].T,
        names=captions[rows],
        groups=groups[rows],
    )
